"""An engine as a model of lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

try:
    import lm_eval.models  # noqa: F401 (the harness' own models, which it would not load once there is another)
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(f"lm-evaluation-harness is missing ({error}): pip install 'dlf[eval]'") from error

from dlf import _C
from dlf.arguments import Path
from dlf.engine import Engine
from dlf.experts import Expert
from dlf.lm_eval.arguments import (
    check_tokenizer,
    located,
    make_engine,
    model_length,
    translate,
    warn_of_default_context,
)
from dlf.recipe import load_recipe
from dlf.results import Completion, Score
from dlf.support.terminal import printable

__all__ = ["DLF"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Pair = tuple[str, str]

AT_ONCE = 256  # requests between two entries in the harness' cache
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("dlf")
class DLF(TemplateLM):  # type: ignore[misc]
    """A dlf engine as a model of lm-evaluation-harness.

    It works as the harness' ``hf`` class, with fused logits: texts are encoded, cut and scored in the same way.
    Sampling options that a task leaves open, such as penalties, are those of the recipe.

    Parameters
    ----------
    recipe : str or path, optional
        File for `Engine.from_recipe`.
    pretrained : str or path, optional
        Folder or hub id of the large model, instead of a recipe.
    expert, base : str or path, optional
        An expert and its base beside `pretrained`; a recipe can have more.
    engine : Engine, optional
        An existing engine, instead of a recipe.
    batch_size : int or str
        ``max_batch`` of the engine; ``"auto"`` leaves that to the engine or the recipe.
    max_length : int, optional
        ``max_context`` of the engine; by default, as for ``hf``, what the model was made for, unless a recipe sets it
        or memory does not allow it, which is a warning.
    device : str, optional
        Device of `pretrained`. The harness passes ``"cuda:0"`` by default; without such a device the CPU is used, as
        for ``hf``. A recipe keeps its own.
    max_gen_toks : int
        Most tokens to generate, for tasks that set no limit.
    add_bos_token : bool, optional
        Whether texts begin with the tokenizer's special tokens; by default as in ``tokenizer.json``.
    prefix_token_id : int, optional
        Token before a text without a context; by default that of the beginning of a sequence, else of its end.
    revision, subfolder : str, optional
        Revision of `pretrained` on the hub, and a folder within it.
    tokenizer : str or path, optional
        Must be that of `pretrained`.
    chat_template_args : mapping, optional
        Variables for the chat template.
    enable_thinking : bool, optional
        One of these variables; True needs `think_end_token`, and generative tasks.
    think_end_token : str or int, optional
        Text or token that ends the thoughts of a model; the answer is what follows the last one.
    max_batch_size
        Not used; the harness passes it on to models that look for a batch size.
    **options
        Further arguments of `Engine`, such as ``dtype``, ``weights`` or ``threads``. Those of ``hf`` that change no
        result here, such as ``trust_remote_code`` or ``parallelize``, are ignored with a warning.

    Raises
    ------
    ValueError, TypeError
        If none or several of `recipe`, `pretrained` and `engine` are given, or options beside an engine, or an argument
        of ``hf`` that an engine cannot honour, such as ``peft``; the message says what to do instead.
    """

    def __init__(
        self,
        recipe: Path | None = None,
        pretrained: Path | None = None,
        *,
        expert: Path | None = None,
        base: Path | None = None,
        engine: Engine | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        device: str | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        revision: Any = None,
        subfolder: str | None = None,
        tokenizer: Any = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if sum(one is not None for one in (recipe, pretrained, engine)) != 1:
            raise ValueError("give one of recipe, pretrained and engine: --model_args recipe=FILE or pretrained=FOLDER")
        if pretrained is None and any(one is not None for one in (expert, base, revision, subfolder, tokenizer)):
            raise ValueError(
                "expert, base, revision, subfolder and tokenizer go with pretrained; a recipe or an engine has its own"
            )
        if enable_thinking and think_end_token is None:
            raise ValueError("enable_thinking needs think_end_token, which ends the thoughts, such as </think>")
        options = translate(options)
        if batch_size is not None and not str(batch_size).startswith("auto"):
            options["max_batch"] = int(batch_size)
        if max_length is not None:
            options["max_context"] = max_length
        if engine is not None:
            options.pop("max_batch", None)  # the harness always gives one
            if options:
                raise TypeError(f"an existing engine has its own options: leave out {', '.join(sorted(options))}")
            self.engine = engine
            warn_of_default_context(engine)
        else:
            if pretrained is None:
                assert recipe is not None
                arguments = load_recipe(os.fspath(recipe)).engine_arguments()
            else:
                large = located(pretrained, revision, subfolder)
                arguments = {"large": large, "experts": [] if expert is None else [Expert(expert)], "base": base}
                if device is not None:
                    there = not device.startswith("cuda") or _C.cuda_devices()
                    arguments["device"] = device if there else "cpu"
            arguments |= options
            if arguments.get("max_context") is None:
                self.engine = make_engine(arguments, model_length(arguments))
            else:
                self.engine = Engine(**arguments)
        if tokenizer is not None:
            check_tokenizer(tokenizer, self.engine.tokenizer)
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self._prefix_token_id = prefix_token_id
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._chat_variables = {**(chat_template_args or {}), **thinking}
        self._thinks = bool(enable_thinking)
        digits = isinstance(think_end_token, str) and think_end_token.isdigit()
        self._think_end = int(think_end_token) if digits else think_end_token  # type: ignore[arg-type]

    @property
    def max_length(self) -> int:
        """Most tokens that a model reads."""
        return self.engine.max_context

    @property
    def batch_size(self) -> int:
        """Sequences that decode side by side."""
        return self.engine.max_batch

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.engine.tokenizer.eos_token_id
        if found is None:
            raise ValueError("the large model's tokenizer names no eos_token; give prefix_token_id")
        return found

    @property
    def prefix_token_id(self) -> int:
        """Token before a text without a context."""
        for token in (self._prefix_token_id, self.engine.tokenizer.bos_token_id):
            if token is not None:
                return token
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Name for caches of requests; tokenizers that encode alike share it."""
        return f"dlf-{self.engine.tokenizer.fingerprint.hex()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Source of the large model's chat template."""
        return self.engine.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation by the large model's chat template; without a generation prompt it stays open.

        A template that refuses these messages gets them without the system messages, as from ``hf``.
        """
        try:
            return self._written(chat_history, add_generation_prompt)
        except ValueError as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if not rest or len(rest) == len(chat_history):
                raise
            logger.warning("the system message is left out: %s", printable(str(error)))
            return self._written(rest, add_generation_prompt)

    def _written(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.engine.tokenizer.apply_chat_template(
            history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._chat_variables,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; a text that begins with the prefix token's text gets no special tokens."""
        if add_special_tokens is None:
            prefix = self.engine.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            begins = bool(prefix) and string.startswith(prefix)
            add_special_tokens = not begins and self.add_bos_token is not False
        tokenizer = self.engine.tokenizer
        tokens = tokenizer.encode(string, add_special_tokens=add_special_tokens)
        bos = tokenizer.bos_token_id
        if add_special_tokens and self.add_bos_token and bos is not None and tokens[:1] != [bos]:
            return [bos, *tokenizer.encode(string, add_special_tokens=False)]  # tokenizer.json adds none
        return tokens

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether each is what greedy decoding gives."""
        if self._thinks:
            raise ValueError("enable_thinking is for generative tasks; leave it out for those that take a likelihood")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the context."""
        windows = []
        counts = []
        for request in requests:
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(found)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Pair | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        answers = []
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for part in _parts(requests):
                prompts: Any = [self._context(*request) for request in part]
                scores: list[Score] = self.engine.score(prompts, [request[2] for request in part], progress=False)
                for (pair, _, _), score in zip(part, scores, strict=True):
                    answers.append((score.logprob, bool(score.is_greedy.all())))
                    if pair is not None:  # None is a window of a longer text
                        self.cache_hook.add_partial("loglikelihood", pair, answers[-1])
                bar.update(len(part))
        return answers

    def _context(self, pair: Pair | None, context: list[int], continuation: list[int]) -> str | list[int]:
        """Context of a continuation: tokens, cut on the left, or a text that each model lays out."""
        if self.engine.reads_tokens:
            room = self.max_length + 1 - len(continuation)
            if len(context) > room >= 1:
                logger.warning("the first %d tokens of a context are cut: it is too long", len(context) - room)
            return context[-room:] if room >= 1 else context  # the engine then refuses it
        if pair is not None and pair[0].strip():
            return pair[0].rstrip()
        return self.engine.tokenizer.decode(context, skip_special_tokens=False)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Complete contexts, up to the stop strings of their tasks."""
        texts: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for options, numbers in self._groups(requests).items():
                sampling = self._sampling(json.loads(options[0]))
                # Long contexts first, so that one that needs too much memory fails at once.
                numbers.sort(key=lambda number: -len(requests[number].args[0]))
                for part in _parts(numbers):
                    prompts: Any = [
                        self._prompt(requests[number].args[0], sampling["max_new_tokens"]) for number in part
                    ]
                    completions = self.engine.generate(prompts, progress=False, **sampling)
                    for number, completion in zip(part, completions, strict=True):
                        texts[number] = self._answer(completion, sampling["stop_strings"])
                        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                    bar.update(len(part))
        return texts

    def _groups(self, requests: Sequence[Any]) -> dict[tuple[str, int], list[int]]:
        """Numbers of the requests with the same options. Repeated requests are apart: each gets a seed of its own."""
        groups: dict[tuple[str, int], list[int]] = {}
        seen: Counter[tuple[str, str]] = Counter()
        for number, request in enumerate(requests):
            context, options = request.args
            written = json.dumps(options, sort_keys=True)
            again = seen[context, written]
            seen[context, written] += 1
            groups.setdefault((written, again), []).append(number)
        return groups

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A task's options, by the engine's names."""
        sampling = dict(options)
        lengths = [sampling.pop(name) for name in LENGTHS if name in sampling]
        until = sampling.pop("until", None) or []
        ends = [until] if isinstance(until, str) else list(until)
        if self.engine.tokenizer.eos_token_id is not None:
            ends.append(self.engine.tokenizer.decode([self.eot_token_id], skip_special_tokens=False))
        draws = sampling.pop("do_sample", None)
        temperature = float(sampling.pop("temperature", 0.0)) if draws is not False else 0.0
        length = int(next((one for one in lengths if one is not None), self.max_gen_toks))
        if length >= self.max_length:
            raise ValueError(
                f"{length} tokens are to be generated in a context of {self.max_length}: lower max_gen_toks in "
                "--gen_kwargs, or raise max_length in --model_args"
            )
        if temperature > 0:
            sampling.setdefault("seed", int(torch.randint(2**62, (1,))))  # by the harness' own seed
        return {
            "max_new_tokens": length,
            "stop_strings": [text for text in dict.fromkeys(ends) if text],
            "temperature": temperature,
            "num_return_sequences": 1,  # whatever a recipe says
        } | sampling

    def _answer(self, completion: Completion, ends: list[str]) -> str:
        """Text after the model's thoughts, if it has any."""
        if self._think_end is None:
            return completion.text
        if isinstance(self._think_end, str):
            return completion.text.split(self._think_end)[-1].lstrip()
        if self._think_end not in completion.tokens:
            return completion.text.lstrip()
        last = completion.tokens[::-1].index(self._think_end)
        text = self.engine.tokenizer.decode(completion.tokens[len(completion.tokens) - last :]).lstrip()
        for end in ends:
            text = text.split(end)[0]
        return text

    def _prompt(self, context: str, new_tokens: int) -> str | list[int]:
        if not self.engine.reads_tokens:
            return context
        return self.tok_encode(context)[-(self.max_length - new_tokens) :]


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), AT_ONCE):
        yield items[begin : begin + AT_ONCE]


def main() -> None:
    """Run the command of lm-evaluation-harness, with dlf among its models."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
