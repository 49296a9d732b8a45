"""``python -m bench context``: answers from a text that contradicts what a model remembers."""

from __future__ import annotations

import json
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

    def messages(self, with_text: bool) -> list[dict[str, str]]:
        """The question as a conversation."""
        asked = f"{self.question} Answer in a few words."
        return [{"role": "user", "content": f"{self.text}\n\n{asked}" if with_text else asked}]

    def is_answer(self, said: str) -> bool:
        """Whether the text's answer comes, and before any other."""
        places = [_place(word, said) for word in (self.answer, self.memory)]
        return places[0] < places[1]


def _place(word: str, text: str) -> float:
    found = re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE)
    return found.start() if found else float("inf")


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
    with dlf.Engine(model, [dlf.Guidance(name=GUIDE)], max_batch=8, **options) as engine:
        asked = [one.messages(True) for one in questions]
        beside = [one.messages(False) for one in questions]
        every = {"max_new_tokens": max_new_tokens, "stop_strings": ["\n\n"], "progress": False}
        said["without the text"] = [one.text for one in engine.generate(messages=beside, experts=[], **every)]
        prefers["without the text"] = [_prefers(engine, one, beside[i], experts=[]) for i, one in enumerate(questions)]
        for rule, given in track(RULES.items(), "Rules"):
            guided = {} if "experts" in given else {"negative_prompt": beside}
            found = engine.generate(messages=asked, **every, **given, **guided)
            said[rule] = [one.text for one in found]
            prefers[rule] = [
                _prefers(engine, one, asked[i], **given, **({"negative_prompt": beside[i]} if guided else {}))
                for i, one in enumerate(questions)
            ]
    right = {
        rule: [one.is_answer(text) for one, text in zip(questions, texts, strict=True)] for rule, texts in said.items()
    }
    result = {
        "rules": {rule: {"answers": _share(right[rule]), "prefers": _share(prefers[rule])} for rule in said},
        "said": said,
        "machine": describe({}, threads),
    }
    tables = json.loads(output.read_text()) if output.exists() else {}
    tables[name or Path(model).name] = result
    output.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table = Table("rule", "answers from the text", "prefers its answer", title=name or model, title_justify="left")
    for rule, figures in result["rules"].items():
        shown = (f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})" for value, low, high in figures.values())
        table.add_row(rule, *shown)
    Console().print(table)


def _prefers(engine: dlf.Engine, one: Question, messages: list[dict[str, str]], **options: Any) -> bool:
    """Whether the text's answer is more probable than the remembered one, both as the whole answer."""
    scores = engine.score(messages=messages, continuation=[one.answer, one.memory], progress=False, **options)
    answer, memory = (score.logprob for score in scores)
    return answer > memory


def _share(values: list[bool]) -> list[float]:
    """Share, and its 95 % interval."""
    found = Estimate.of(np.array(values, np.float64), "questions")
    return [round(number, 4) for number in (found.value, *found.interval())]
