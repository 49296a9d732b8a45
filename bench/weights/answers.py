"""Scores rules on generated answers and on multiple choices; what the models computed once serves all rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.family.problem import Problem
from bench.quality.estimate import Floats
from bench.weights.models import Reading, Trio
from bench.weights.rules import Rule
from bench.weights.step import Step

__all__ = ["Choices", "Generated"]

MOST = 110  # tokens of an answer, as in bench/family/tasks
UNTIL = ("\n\n", "Question:", "Report:")
AT_ONCE = 256  # texts
TAIL = 8  # tokens at the end of an answer in which one of `UNTIL` may stand
Scored = Callable[[dict[str, Any], list[str]], dict[str, float]]


def _step(logits: Tensor, rows: Sequence[int]) -> Step:
    return Step(logits[:, 0], logits[:, 1], logits[:, 2], torch.tensor(rows))


class Generated:
    """Greedy answers to problems.

    The tree of all answers so far keeps the three models' logits at each node. A rule walks along it, and the models
    run only where its answer is a new one.
    """

    def __init__(self, trio: Trio, problems: Sequence[Problem], score: Scored) -> None:
        self.problems = problems
        self._trio, self._score = trio, score
        self._prompts = [trio.encode(problem.prompt) for problem in problems]
        self._next: dict[tuple[int, int], int | None] = {}  # the node after a token, or None at the end of an answer
        self._logits = torch.empty(0, 3, trio.vocab)
        self._count = 0
        for start in range(0, len(problems), AT_ONCE):
            self._add(Reading(trio, self._prompts[start : start + AT_ONCE]).logits)

    def answers(self, rule: Rule) -> list[str]:
        made: list[list[int]] = [[] for _ in self.problems]
        node = list(range(len(self.problems)))
        walking, leaving = node.copy(), []
        while walking:
            going = []
            for start in range(0, len(walking), AT_ONCE):
                rows = walking[start : start + AT_ONCE]
                tokens = rule(_step(self._logits[[node[row] for row in rows]], rows)).argmax(-1).tolist()
                for row, token in zip(rows, tokens, strict=True):
                    made[row].append(token)
                    if (node[row], token) not in self._next and not self._ended(node[row], made[row]):
                        leaving.append(row)
                    elif (after := self._next[node[row], token]) is not None:
                        node[row] = after
                        going.append(row)
            walking = going
        for start in range(0, len(leaving), AT_ONCE):
            self._generate(rule, leaving[start : start + AT_ONCE], made, node)
        return [self._text(tokens) for tokens in made]

    def scores(self, rule: Rule) -> Floats:
        pairs = zip(self.problems, self.answers(rule), strict=True)
        return np.array([next(iter(self._score({"answer": one.answer}, [text]).values())) for one, text in pairs])

    def _generate(self, rule: Rule, rows: list[int], made: list[list[int]], node: list[int]) -> None:
        """Finish answers that left the tree, and add them to it."""
        reading = Reading(self._trio, [self._prompts[row] + made[row] for row in rows])
        while True:
            first = self._add(reading.logits)
            for offset, row in enumerate(rows):
                self._next[node[row], made[row][-1]] = node[row] = first + offset
            tokens = rule(_step(reading.logits, rows)).argmax(-1).tolist()
            for row, token in zip(rows, tokens, strict=True):
                made[row].append(token)
            kept = [index for index, row in enumerate(rows) if not self._ended(node[row], made[row])]
            if not kept:
                return
            if len(kept) < len(rows):
                reading.keep(kept)
                rows = [rows[index] for index in kept]
            reading.feed([made[row][-1] for row in rows])

    def _add(self, logits: Tensor) -> int:
        """Keep the logits of new nodes; return the first one's number."""
        first, self._count = self._count, self._count + len(logits)
        if self._count > len(self._logits):
            grown = torch.empty(max(2 * len(self._logits), self._count), *logits.shape[1:])
            grown[:first] = self._logits[:first]
            self._logits = grown
        self._logits[first : self._count] = logits
        return first

    def _ended(self, node: int, tokens: list[int]) -> bool:
        tail = self._trio.tokenizer.decode(tokens[-TAIL:])
        ended = tokens[-1] == self._trio.end or len(tokens) >= MOST or any(mark in tail for mark in UNTIL)
        if ended:
            self._next[node, tokens[-1]] = None
        return ended

    def _text(self, tokens: list[int]) -> str:
        text: str = self._trio.tokenizer.decode([token for token in tokens if token != self._trio.end])
        for mark in UNTIL:
            text = text.split(mark)[0]
        return text


class Choices:
    """The most probable of each problem's choices."""

    def __init__(self, trio: Trio, problems: Sequence[Problem]) -> None:
        self.problems = problems
        pairs = [
            (len(trio.encode(one.prompt)), trio.encode(one.prompt + text)) for one in problems for text in one.choices
        ]
        self._tokens = [text[first:] for first, text in pairs]
        parts = []
        for start in range(0, len(pairs), AT_ONCE):
            some = pairs[start : start + AT_ONCE]
            logits = trio.read([text for _, text in some])
            parts += [one[:, first - 1 : len(text) - 1] for one, (first, text) in zip(logits, some, strict=True)]
        self._first = np.cumsum([0, *map(len, self._tokens)])
        self._logits = torch.cat(parts, 1)  # [models, tokens, vocab]

    def scores(self, rule: Rule) -> Floats:
        likely = np.zeros(len(self._tokens))
        for place in range(max(map(len, self._tokens))):
            longer = [row for row, tokens in enumerate(self._tokens) if len(tokens) > place]
            for start in range(0, len(longer), AT_ONCE):
                rows = longer[start : start + AT_ONCE]
                found = rule(_step(self._logits[:, self._first[rows] + place].transpose(0, 1), rows))
                tokens = torch.tensor([self._tokens[row][place] for row in rows])
                likely[rows] += found.gather(1, tokens[:, None])[:, 0].double().numpy()
        chosen = likely.reshape(len(self.problems), -1).argmax(1)
        right = [one.choices.index(one.completion) for one in self.problems]
        return np.array([float(a == b) for a, b in zip(chosen, right, strict=True)])
