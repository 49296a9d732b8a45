"""The paper's claims, checked on our tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench.family import corpus
from bench.quality.estimate import Estimate
from bench.quality.systems import MODES
from bench.quality.tables import RATIO, SHARE, Filled

__all__ = ["Finding", "findings"]

ONE_EXPERT = ("dynamic", "expert alone", "large base")


@dataclass(frozen=True)
class Finding:
    """A figure and its bound; "wholly above" means its whole interval."""

    title: str
    found: Estimate
    bound: float
    kind: Literal["at least", "above", "wholly above"] = "at least"

    @property
    def holds(self) -> bool:
        if self.kind == "at least":
            return self.found.value >= self.bound
        return (self.found.value if self.kind == "above" else self.found.interval()[0]) > self.bound

    def as_json(self) -> dict[str, Any]:
        low, high = self.found.interval()
        wanted = f"{self.kind} {self.bound:g}"
        return {"value": self.found.value, "low": low, "high": high, "wanted": wanted, "holds": self.holds}


def findings(tables: list[Filled]) -> list[Finding]:
    """The paper's claims, with our figures from filled tables."""
    single, several, _, _, solver = tables[:5]

    def cell(table: Filled, row: str, heading: str) -> Estimate:
        found = table.cell(row, heading)
        assert found is not None, (row, heading)
        return found

    dynamic_all = cell(single, "dynamic", "mean of all")
    ways = [*(f"`{mode}`" for mode in MODES), "multi-task expert, dynamic"]
    best = max(ways, key=lambda way: cell(several, way, RATIO).value)
    unseen = corpus.UNSEEN
    dynamic, alone, base = ({task: cell(single, row, task) for task in corpus.TASKS} for row in ONE_EXPERT)
    fused = max((cell(several, way, unseen) for way in ways), key=lambda one: one.value)
    return [
        Finding("one expert, dynamic: ratio to large fine-tuned, seen tasks", cell(single, "dynamic", RATIO), 0.964),
        Finding("one expert, dynamic: share of the gap, seen tasks", cell(single, "dynamic", SHARE), 0.905),
        Finding("dynamic − α = 1, all tasks", dynamic_all - cell(single, "α = 1", "mean of all"), 0.0, "wholly above"),
        *(
            Finding(f"dynamic − expert alone, {task}", dynamic[task] - alone[task], 0.0, "above")
            for task in corpus.SEEN
        ),
        Finding(f"several experts, {best}: ratio to large multi-task fine-tuned", cell(several, best, RATIO), 0.90),
        Finding(f"several experts, {best}: share of the gap", cell(several, best, SHARE), 0.50),
        Finding(f"{unseen}, dynamic with one expert / large base", dynamic[unseen] / base[unseen], 1.0),
        Finding(f"{unseen}, best of several / large base", fused / cell(several, "large base", unseen), 1.0),
        Finding(
            "exact solver − grid, all tasks",
            cell(solver, "exact solver", "mean of all") - cell(solver, "the paper's grid", "mean of all"),
            0.0,
        ),
    ]
