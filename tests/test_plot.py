"""The coloured line and the picture of alpha."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from dlf.plot import alpha_colour, alpha_legend, alpha_line, plot_alpha


@dataclass
class Trace:
    alpha: npt.NDArray[np.float64]
    f: npt.NDArray[np.float64]
    g: npt.NDArray[np.float64]


@dataclass
class Piece:
    text: str
    alpha: npt.NDArray[np.float64]


def trace(steps: int, experts: int) -> Trace:
    generator = np.random.default_rng(0)
    alpha = generator.uniform(0, 2, (steps, experts))
    return Trace(alpha, generator.uniform(0, 1, steps), generator.uniform(0, 1, steps))


def render(pieces: list[Piece], width: int = 40, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(alpha_line(pieces, width), alpha_legend())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def luminance(alpha: float) -> float:
    red, green, blue = alpha_colour(alpha)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_colours_darken_along_the_scale_and_stop_at_its_ends() -> None:
    values = [luminance(alpha) for alpha in np.linspace(0, 2, 41)]
    assert all(a > b for a, b in zip(values, values[1:], strict=False))
    assert alpha_colour(-3) == alpha_colour(0) == alpha_colour(float("nan"))
    assert alpha_colour(9) == alpha_colour(2)


def test_line_carries_alpha_in_bars_where_there_is_no_colour() -> None:
    pieces = [Piece("none", np.array([0.0])), Piece(" half", np.array([1.0])), Piece(" full", np.array([1.5, 0.5]))]
    lines = render(pieces).splitlines()
    assert lines[0].rstrip() == "none half full"
    assert lines[1].rstrip() == "    ▄▄▄▄▄█████"


def test_line_with_colour_writes_backgrounds() -> None:
    red, green, blue = alpha_colour(1.0)
    assert f"48;2;{red};{green};{blue}" in render([Piece("x", np.array([1.0]))], colour=True)


def test_line_wraps_between_tokens_and_at_line_breaks() -> None:
    pieces = [Piece(text, np.array([2.0])) for text in ("aaaa", "bbbb", "", "日本語", "x\n\ny", "\t", "\x1b[1m")]
    text = render(pieces, width=12)
    lines = text.splitlines()
    assert lines[0].rstrip() == "aaaabbbb"
    assert lines[2].rstrip() == "日本語x⏎"
    assert "\x1b" not in text  # control codes of a model must not reach the terminal


@pytest.mark.parametrize(("steps", "experts"), [(1, 1), (40, 1), (30, 3), (300, 2)])
def test_plot_writes_a_picture(tmp_path: Path, steps: int, experts: int) -> None:
    path = tmp_path / "alpha.png"
    texts = (["$x$", "日本", "\n", " word", ""] * steps)[:steps]
    names = [f"$expert{i}$" for i in range(experts)]
    completion = trace(steps, experts)
    plot_alpha(completion, path, texts, experts=names, targets=(completion.f, completion.g), title="$ a $")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no alpha"):
        plot_alpha(trace(3, 0), tmp_path / "a.png", ["a"] * 3)
    with pytest.raises(ValueError, match="2 token texts for 3 steps"):
        plot_alpha(trace(3, 1), tmp_path / "a.png", ["a"] * 2)


def test_plot_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install"):
        plot_alpha(trace(3, 1), tmp_path / "a.png", ["a"] * 3)
