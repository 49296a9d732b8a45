"""``python -m bench context``: answers from a text that contradicts what a model remembers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.machine import describe
from bench.quality.estimate import Estimate

__all__ = ["main"]

QUESTIONS = Path(__file__).with_name("questions.jsonl")
RESULTS = Path(__file__).parents[1] / "results"
GUIDE = "context"  # name of the expert that has the question without its text as negative prompt
NUMBERS = {
    word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten eleven".split())
}
NUMBERS |= {"twelve": "12", "twenty": "20"}
RULES: dict[str, dict[str, Any]] = {
    "with the text": {"experts": []},
    "CAD, α = 0.5": {"guidance_scale": 1.5},
    "CAD, α = 1": {"guidance_scale": 2.0},
    "AdaCAD": {"combine": "jsd"},
    "select": {},
    "certainty": {"combine": "certainty"},
}


@dataclass(frozen=True)
class Question:
    """A question, its answer in the text, and what a model says without the text."""

    text: str
    question: str
    answer: str
    memory: str

    def asked(self, with_text: bool, chat: bool) -> dict[str, Any]:
        """The question as a conversation, or as a text that a model without a chat template continues."""
        before = f"{self.text}\n\n" if with_text else ""
        if not chat:
            return {"prompt": f"{before}Question: {self.question}\nAnswer:"}
        return {"messages": [{"role": "user", "content": f"{before}{self.question} Answer in a few words."}]}

    def is_answer(self, said: str) -> bool:
        """Whether the text's answer comes, and before any other."""
        places = [_place(word, said) for word in (self.answer, self.memory)]
        return places[0] < places[1]


def _place(word: str, text: str) -> float:
    """Where a text has a word, or one that begins with it; numbers may be digits or words."""
    spellings = {word.lower(), *(pair[0] for pair in NUMBERS.items() if pair[1] == word), NUMBERS.get(word, word)}
    begins = [rf"\b{re.escape(one)}" + (r"\b" if one.isdigit() else "") for one in spellings]
    found = [match.start() for one in begins for match in [re.search(one, text, re.IGNORECASE)] if match]
    return min(found, default=math.inf)


def main(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file or hub id of a chat model.")],
    name: Annotated[str, typer.Option(help="Its name in the results; the last part of its path if not given.")] = "",
    weights: Annotated[str | None, typer.Option(help="Type of its weights.")] = None,
    device: Annotated[str, typer.Option(help="Device.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 32,
    output: Annotated[Path, typer.Option(help="JSON file that gets this table beside those it has.")] = RESULTS
    / "context.json",
) -> None:
    """Answer fifty questions with a model alone, and with fusions of its logits with and without the text."""
    questions = [Question(**json.loads(line)) for line in QUESTIONS.read_text("utf-8").splitlines()]
    options: dict[str, Any] = {"weights": weights, "device": device}
    if threads is not None:
        options["threads"] = threads
    said: dict[str, list[str]] = {}
    prefers: dict[str, list[bool]] = {}
    with dlf.Engine(model, [dlf.Guidance(name=GUIDE)], max_batch=1, **options) as engine:
        chat = engine.tokenizer.has_chat_template
        every = {"max_new_tokens": max_new_tokens, "stop_strings": ["\n"], "progress": False}
        for rule, given in track({"without the text": {"experts": []}, **RULES}.items(), "Rules"):
            said[rule], prefers[rule] = [], []
            for one in questions:
                asked = one.asked(rule != "without the text", chat)
                options = given | ({} if "experts" in given else {"negative_prompt": _beside(one, chat)})
                said[rule].append(engine.generate(**asked, **every, **options).text)
                prefers[rule].append(_prefers(engine, one, chat, **asked, **options))
    right = {
        rule: [one.is_answer(text) for one, text in zip(questions, texts, strict=True)] for rule, texts in said.items()
    }
    plain = next(iter(RULES))
    result = {
        "rules": {
            rule: {
                "answers": _share(right[rule]),
                "gain": _share(right[rule], right[plain]),
                "prefers": _share(prefers[rule]),
            }
            for rule in said
        },
        "said": said,
        "machine": describe({}, threads),
    }
    tables = json.loads(output.read_text()) if output.exists() else {}
    tables[name or Path(model).name] = result
    output.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    columns = "answers from the text", f"more than {plain!r}", "prefers its answer"
    table = Table("rule", *columns, title=name or model, title_justify="left")
    for rule, figures in result["rules"].items():
        shown = (f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})" for value, low, high in figures.values())
        table.add_row(rule, *shown)
    Console().print(table)


def _beside(one: Question, chat: bool) -> Any:
    """The question without its text, as a negative prompt."""
    return next(iter(one.asked(False, chat).values()))


def _prefers(engine: dlf.Engine, one: Question, chat: bool, **asked: Any) -> bool:
    """Whether the text's answer is more probable than the remembered one."""
    space = "" if chat else " "
    scores = engine.score(continuation=[space + one.answer, space + one.memory], progress=False, **asked)
    answer, memory = (score.logprob for score in scores)
    return answer > memory


def _share(values: list[bool], against: list[bool] | None = None) -> list[float]:
    """Share, or its difference to another one of the same questions, and the 95 % interval."""
    found = Estimate.of(np.array(values, np.float64), "questions")
    if against is not None:
        found -= Estimate.of(np.array(against, np.float64), "questions")
    return [round(number, 4) for number in (found.value, *found.interval())]
