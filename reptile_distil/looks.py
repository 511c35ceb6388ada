"""How the rows of a table are told apart in its pictures: each by colour, marker, hatch and line style at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reptile_distil.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Look(NamedTuple):
    """What one row looks like in every picture."""

    color: str
    marker: str
    hatch: str
    """Of its bars."""
    line: Any
    """Style of its lines, as matplotlib's `linestyle`."""


BAND = "± 1 standard deviation over seeds"
"""What the legend calls a band."""

LOOKS = {
    "teacher": Look(VERMILLION, "s", "", "-"),
    "finetune": Look(ORANGE, "^", "//", ":"),
    "kd": Look(GREEN, "v", "\\\\", "--"),
    "reptile": Look(BLUE, "o", "", "-"),
    "metadistil": Look(PURPLE, "D", "xx", "-."),
}
# 6 colours (the last four are Tol's muted ones), 7 markers, 5 hatches and 5 line styles: 42 others differ from each
# other, and neighbours in all at once.
_COLORS = (SKY, GREY, "#882255", "#999933", "#332288", "#CC6677")
_MARKERS = ("P", "X", "*", "<", ">", "h", "d")
_HATCHES = ("..", "++", "oo", "--", "||")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def order_names(names: Iterable[str]) -> list[str]:
    """Each name once: the known methods first, then the others in the order they come in."""
    found = list(dict.fromkeys(names))
    return [name for name in LOOKS if name in found] + [name for name in found if name not in LOOKS]


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name; a known method's is the same whatever else there is."""
    others = [name for name in names if name not in LOOKS]
    return {name: LOOKS[name] if name in LOOKS else _other_look(others.index(name)) for name in names}


def legend_on_top(figure: Figure, names: Sequence[str], *, bands: bool = False) -> None:
    """One legend over all panels, in as many columns as the figure's width has room for; with what `bands` mean."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    labels = [label for label in names if label in found]
    if bands:
        from matplotlib.patches import Patch

        labels.append(BAND)
        found[BAND] = Patch(color=GREY, alpha=0.25, linewidth=0)
    if labels:
        num_columns = _most_columns(labels, figure.get_figwidth())
        figure.legend([found[label] for label in labels], labels, loc="outside upper left", ncols=num_columns)


def _most_columns(labels: Sequence[str], inches: float) -> int:
    """How many columns fit side by side; matplotlib fills them one after the other, the first ones with one more."""
    lengths = [len(label) for label in labels]
    for num_columns in range(len(labels), 1, -1):
        columns = np.array_split(lengths, num_columns)
        if sum(0.6 + 0.075 * max(column) for column in columns) < inches:  # key, gap, letters of 8 points
            return num_columns
    return 1


def _other_look(index: int) -> Look:
    return Look(
        color=_COLORS[index % len(_COLORS)],
        marker=_MARKERS[index % len(_MARKERS)],
        hatch=_HATCHES[index % len(_HATCHES)],
        line=_LINES[index % len(_LINES)],
    )
