"""Where a text stops."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces.

    Text is held back only as long as it may be the beginning of a stop string. Each string has a Knuth-Morris-Pratt
    automaton, so the time is linear in the text, whatever the pieces.

    Parameters
    ----------
    strings : str or Sequence[str]
        The stop strings; none at all lets every text pass.

    """

    def __init__(self, strings: str | Sequence[str] = ()) -> None:
        strings = (strings,) if isinstance(strings, str) else strings
        self.strings = tuple(strings)
        if not all(self.strings):
            raise ValueError("stop_strings holds an empty string: leave it out")
        self._borders = [_borders(string) for string in self.strings]
        self._matched = [0] * len(self.strings)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece of text.

        Parameters
        ----------
        text : str
            What follows the text that was pushed before.

        Returns
        -------
        text : str
            What can be shown now: it lies before any stop string.
        stopped : bool
            Whether a stop string has come; from then on no text comes out.

        """
        if self._stopped:
            return "", True
        for position, character in enumerate(text):
            longest = 0
            for index, string in enumerate(self.strings):
                if self._advance(index, character) == len(string):
                    longest = max(longest, len(string))
            if longest:
                seen = self._held + text[: position + 1]
                self._stopped = True
                self._held = ""
                return seen[: len(seen) - longest], True
        seen = self._held + text
        safe = len(seen) - max(self._matched, default=0)
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """Ends the text.

        Returns
        -------
        str
            What was held back and has not become a stop string.

        """
        held, self._held = self._held, ""
        self._matched = [0] * len(self.strings)
        return held

    def _advance(self, index: int, character: str) -> int:
        string, borders = self.strings[index], self._borders[index]
        matched = self._matched[index]
        while matched and string[matched] != character:
            matched = borders[matched - 1]
        matched += string[matched] == character
        self._matched[index] = matched
        return matched


def _borders(string: str) -> list[int]:
    """For every prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(string)
    length = 0
    for position in range(1, len(string)):
        while length and string[position] != string[length]:
            length = borders[length - 1]
        length += string[position] == string[length]
        borders[position] = length
    return borders
