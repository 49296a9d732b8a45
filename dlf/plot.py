"""Shows alpha at every token: as a coloured line for terminals and as a picture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len
from rich.console import Group
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["alpha_colour", "alpha_legend", "alpha_line", "check_place", "plot_alpha"]

MATPLOTLIB_HINT = "the plot needs matplotlib: pip install matplotlib"
LEVELS = " ▁▂▃▄▅▆▇█"
MAX_LABELS = 200

# The lightness falls all the way, so that the scale reads the same in grey and for the colour-blind.
SCALE = np.array([(236, 239, 244), (254, 224, 139), (252, 141, 89), (213, 62, 79), (110, 1, 80)], dtype=np.float64)
EXPERT_COLOURS = ("#d53e4f", "#3288bd", "#66a61e", "#e6ab02", "#7570b3", "#1b9e77", "#a6761d", "#666666")
INK, FAINT = "#22262e", "#d8dce3"


class AlphaTrace(Protocol):
    """The part of a `Completion` that is drawn."""

    @property
    def alpha(self) -> npt.NDArray[np.float64]: ...
    @property
    def f(self) -> npt.NDArray[np.float64]: ...
    @property
    def g(self) -> npt.NDArray[np.float64]: ...


class AlphaPiece(Protocol):
    """The part of a `Piece` that is shown."""

    @property
    def text(self) -> str: ...
    @property
    def alpha(self) -> npt.NDArray[np.float64]: ...


def alpha_colour(alpha: float, alpha_max: float = 2.0) -> tuple[int, int, int]:
    """Red, green and blue of a weight, 0 to 255; a weight outside 0 to `alpha_max` takes the end's colour."""
    place = float(np.clip(np.nan_to_num(alpha / alpha_max), 0.0, 1.0)) * (len(SCALE) - 1)
    channels = [np.interp(place, np.arange(len(SCALE)), SCALE[:, channel]) for channel in range(3)]
    red, green, blue = (round(float(value)) for value in channels)
    return red, green, blue


def alpha_style(alpha: float, alpha_max: float = 2.0) -> Style:
    """The weight's colour as background, with ink that is legible on it, whatever the terminal's own colours."""
    red, green, blue = alpha_colour(alpha, alpha_max)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return Style.parse(f"{'#ffffff' if dark else '#000000'} on #{red:02x}{green:02x}{blue:02x}")


def alpha_line(pieces: Iterable[AlphaPiece], width: int = 80, alpha_max: float = 2.0) -> Group:
    """Draw the text with each token coloured by its weight, and below it a bar, which needs no colour.

    Parameters
    ----------
    pieces : iterable of Piece
        The pieces of one sequence. The weights of several experts are added.
    width : int
        Cells in a line.
    alpha_max : float
        The weight at the end of the scale.
    """
    lines: list[Text] = []
    text, bars = Text(no_wrap=True), Text(no_wrap=True)

    def end_line() -> None:
        nonlocal text, bars
        if text.cell_len:
            lines.extend((text, bars))
        text, bars = Text(no_wrap=True), Text(no_wrap=True)

    for piece in pieces:
        alpha = float(np.sum(piece.alpha))
        style = alpha_style(alpha, alpha_max)
        bar = LEVELS[int(np.clip(round(np.nan_to_num(alpha / alpha_max) * 8), 0, 8))]
        # A piece may be empty (part of a character, end of sequence) or hold line breaks.
        for part, breaks in _split(piece.text):
            cells = cell_len(part)
            if text.cell_len and text.cell_len + cells > width:
                end_line()
            text.append(part, style)
            bars.append(bar * cells)
            if breaks:
                end_line()
    end_line()
    return Group(*lines)


def _split(text: str) -> list[tuple[str, bool]]:
    """Parts of a piece, and whether the line ends after each."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text.replace("\r\n", "\n"))
    *broken, rest = shown.split("\n")
    parts = [(part + "⏎", True) for part in broken]
    return [*parts, (rest, False)] if rest else parts


def alpha_legend(alpha_max: float = 2.0, steps: int = 8) -> Text:
    """The scale of `alpha_line`."""
    legend = Text("α  0 ", no_wrap=True)
    for i in range(steps + 1):
        legend.append(f" {LEVELS[round(i * 8 / steps)]} ", alpha_style(alpha_max * i / steps, alpha_max))
    return legend.append(f" {alpha_max:g}")


def check_place(path: Path) -> None:
    """Check that a picture can be saved at `path`, before the work that it will show.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ImportError
        If matplotlib is missing.
    ValueError
        If matplotlib has no such format.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to save the plot in")
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError(MATPLOTLIB_HINT) from error
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise ValueError(f"no picture can be saved as {path.suffix!r}; give one of: {', '.join(sorted(formats))}")


def plot_alpha(
    completion: AlphaTrace,
    path: str | os.PathLike[str],
    token_texts: Sequence[str],
    *,
    experts: Sequence[str] | None = None,
    targets: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    alpha_max: float = 2.0,
    title: str | None = None,
) -> None:
    """Save a picture of the weights along the text, and of how far the fused distribution moved.

    Parameters
    ----------
    completion : Completion
        Its ``alpha``, ``f`` and ``g`` are drawn.
    path : str or path
        File to write; its ending chooses the format (png, svg, pdf).
    token_texts : sequence of str
        Text of each token.
    experts : sequence of str, optional
        Names of the columns of ``alpha``; the completion's own if not given.
    targets : pair of array_like, optional
        KL(expert || base) and KL(base || expert) at each step, dotted beside the ``f`` and ``g`` that match them.
    alpha_max : float
        End of the axis of alpha, unless a weight lies above.
    title : str, optional
        Heading.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If there are no weights to draw, or texts and steps differ in number.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window system is touched
    except ImportError as error:
        raise ImportError(MATPLOTLIB_HINT) from error
    alpha = np.asarray(completion.alpha, dtype=np.float64)
    steps = len(alpha)
    if alpha.ndim != 2 or not alpha.size:
        raise ValueError("there is no alpha to plot: the completion has no steps or no experts")
    if len(token_texts) != steps:
        raise ValueError(f"{len(token_texts)} token texts for {steps} steps")
    names = list(experts or getattr(completion, "experts", None) or [f"expert {t + 1}" for t in range(alpha.shape[1])])
    size = (float(np.clip(0.19 * steps + 1.5, 6.5, 24)), 4.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    _draw_alpha(above, alpha, names, alpha_max)
    _draw_divergences(below, completion, targets)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_xlim(-0.6, steps - 0.4)
    _label_tokens(below, token_texts)
    with warnings.catch_warnings():  # a script that the font lacks shows as boxes anyway
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=150)


def _draw_alpha(axes: Axes, alpha: npt.NDArray[np.float64], names: Sequence[str], alpha_max: float) -> None:
    from matplotlib.ticker import MaxNLocator

    x = np.arange(len(alpha))
    if alpha.shape[1] == 1:
        colours = [tuple(channel / 255 for channel in alpha_colour(value, alpha_max)) for value in alpha[:, 0]]
        axes.bar(x, alpha[:, 0], width=0.86, color=colours, edgecolor="#8a8f99", linewidth=0.4)
        axes.set_ylabel(f"α  {names[0]}", color=INK, fontsize=9, parse_math=False)
    else:
        edges = np.arange(len(alpha) + 1) - 0.5
        for t, name in enumerate(names):
            colour = EXPERT_COLOURS[t % len(EXPERT_COLOURS)]
            axes.stairs(alpha[:, t], edges, color=colour, linewidth=1.6, label=name)
            axes.stairs(alpha[:, t], edges, color=colour, alpha=0.14, fill=True)
        axes.set_ylabel("α", color=INK, fontsize=9)
        _legend(axes)
    low, high = min(0.0, float(alpha.min())), max(alpha_max, float(alpha.max()))
    axes.set_ylim(low * 1.04, high * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.axhline(1.0, color="#8a8f99", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.6)


def _draw_divergences(axes: Axes, completion: AlphaTrace, targets: tuple[npt.ArrayLike, npt.ArrayLike] | None) -> None:
    curves = (completion.f, "KL(fused ‖ large)", "#3288bd"), (completion.g, "KL(large ‖ fused)", "#e08214")
    for i, (values, label, colour) in enumerate(curves):
        x = np.arange(len(values))
        axes.plot(x, values, color=colour, linewidth=1.4, marker="o", markersize=2.6, label=label)
        if targets is not None:
            aim = ("expert ‖ base", "base ‖ expert")[i]
            axes.plot(x, np.asarray(targets[i]), color=colour, linewidth=1.0, linestyle=":", label=f"target KL({aim})")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("nats", color=INK, fontsize=9)
    _legend(axes)


def _legend(axes: Axes) -> None:
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=8, borderpad=0, labelcolor=INK
    )
    # A name is plain text, even with dollar signs.
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label_tokens(axes: Axes, token_texts: Sequence[str]) -> None:
    if len(token_texts) > MAX_LABELS:
        axes.set_xlabel("token", color=INK, fontsize=9)
        return
    # Nearly every word begins with a space; it is shown only if there is nothing else.
    words = [text.strip(" ") or "·" * len(text) for text in token_texts]
    shown = [word if len(word) <= 14 else word[:13] + "…" for word in (word.replace("\n", "⏎") for word in words)]
    axes.set_xticks(range(len(shown)), shown, rotation=90, family="monospace", fontsize=7, color=INK, parse_math=False)
