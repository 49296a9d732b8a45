"""Finds the modules that the regular expressions of a configuration select.

The expressions are untrusted. RE2 matches in time that is linear in expression and text, where Python's own engine may
never end; what RE2 cannot match, such as lookaround and backreferences, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dlf.errors import CheckpointError

__all__ = ["first_matches", "full_match"]

PROGRAM_BYTES = 1 << 17  # of one compiled expression
MAX_WORK = 1 << 26  # instructions of an expression times names matched against it, over all expressions
CALL = 50  # cost of calling the matcher, in instructions
PEFT_FORM = r"(.*\.)?({})$"  # matches the end of a name
READ_OTHERWISE = re.compile(r"\{,|\[\[:")  # spellings that Python and RE2 read differently


def first_matches(
    patterns: Mapping[str, float], names: Iterable[str], default: float, where: str, form: str = PEFT_FORM
) -> dict[str, float]:
    """Return for each name the value of the first pattern of the mapping that matches, or `default`.

    A pattern matches as in ``re.match(form.format(pattern), name)``; the default `form` is PEFT's.

    Raises
    ------
    CheckpointError
        If RE2 cannot compile a pattern, or all of them together take too long.
    """
    found = dict.fromkeys(names, default)
    left, work = list(found), 0
    for pattern, value in patterns.items():
        if not left:
            break
        expression = _compiled(form.format(pattern), pattern, where)
        work += (CALL + expression.programsize) * len(left)
        if work > MAX_WORK:
            raise CheckpointError(
                f"{where} has more and longer patterns than can be matched in time; give names of modules"
            )
        missed = []
        for name in left:
            if expression.match(name):
                found[name] = value
            else:
                missed.append(name)
        left = missed
    return found


def full_match(pattern: str, where: str) -> Callable[[str], bool]:
    """Return a function that tells whether a pattern matches a whole name; errors are those of `first_matches`."""
    expression = _compiled(pattern, pattern, where)
    return lambda name: expression.fullmatch(name) is not None


def _compiled(text: str, pattern: str, where: str) -> Any:
    import re2  # few checkpoints need it

    options = re2.Options()
    options.max_mem = PROGRAM_BYTES
    options.log_errors = False
    try:
        if READ_OTHERWISE.search(pattern):
            raise re2.error("this spelling means something else in Python")
        return re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise CheckpointError(
            f"{where} has the pattern {pattern!r:.60}, which RE2 cannot match ({said:.80}); give names of "
            "modules, or write it without lookaround and backreferences"
        ) from None
