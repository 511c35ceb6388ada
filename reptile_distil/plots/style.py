"""What all pictures share: colours, line styles, figures, legends, and how they are saved.

Drawn on figures of our own, never through pyplot: no window, no global state, no backend to choose.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reptile_distil.errors import MissingExtraError
from reptile_distil.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every common colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#555555",
    "#000000",
)

STUDENT, TEACHER = BLUE, VERMILLION
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
}

DOTS_PER_INCH = 120
MOST_DOTS = 2250
"""On a picture's longer side: a larger one has fewer dots an inch, and stays below a megabyte."""
MOST_MARKERS = 30  # a line of more points than this is drawn without markers
MOST_SERIES = 10
"""More names than this share no panel: nobody could tell them apart."""


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The one style of all pictures. Raises `MissingExtraError` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("pictures need matplotlib: pip install 'reptile-distil[plots]'")
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style: a picture looks the same everywhere
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, with constrained layout."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the whole picture or nothing; the ending of `path` (.png, .pdf, .svg) chooses the format."""
    path = Path(path)
    with drawing():
        dpi = min(DOTS_PER_INCH, MOST_DOTS / max(figure.get_size_inches()))
        write = partial(figure.savefig, dpi=dpi, format=path.suffix.removeprefix(".") or "png")
        replace_file(path, write, shared=True)  # several workers may draw a table at the same moment
    return path


def legend_above(axes: Axes, num_columns: int = 2) -> None:
    """The legend between title and axes, where it covers no data; the title moves up to make room."""
    handles, labels = axes.get_legend_handles_labels()
    num_rows = -(-len(labels) // num_columns)
    axes.set_title(axes.get_title(loc="left"), pad=6 + 13 * num_rows)
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns)


def to_number(value: float | None) -> float:
    """The value itself, NaN for JSON's null, which stands for an undefined one."""
    return math.nan if value is None else float(value)


def is_finite(line: Any) -> bool:
    """Whether a line has at least one finite value."""
    return bool(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any())


class SeriesStyle(NamedTuple):
    """Colour, marker, hatch and line of one row, the same in every picture."""

    color: str
    marker: str
    hatch: str
    """Hatch of its bars."""
    line: Any
    """Style of its lines, as matplotlib's `linestyle`."""


SPREAD = "± 1 standard deviation over seeds"
"""The legend's name of a band or of an error bar."""

STYLES = {
    "teacher": SeriesStyle(VERMILLION, "s", "", "-"),
    "finetune": SeriesStyle(ORANGE, "^", "//", ":"),
    "kd": SeriesStyle(GREEN, "v", "\\\\", "--"),
    "reptile": SeriesStyle(BLUE, "o", "", "-"),
    "kd-kept": SeriesStyle("#44AA99", "X", "xx", "-."),  # KD from kept logits, in the benchmark
    "student-first": SeriesStyle("#88CCEE", "P", "..", "--"),  # Reptile in one pass, in the benchmark
    "metadistil": SeriesStyle(PURPLE, "D", "xx", "-."),
    "prokt": SeriesStyle("#117733", "<", "++", (0, (3, 1, 1, 1))),
    "cotrain": SeriesStyle("#AA4499", ">", "oo", (0, (1, 1))),
    "checkpoints": SeriesStyle("#44AA99", "X", "||", (0, (5, 1))),
    "lgtm": SeriesStyle("#661100", "h", "//", (0, (3, 1, 1, 1, 1, 1))),
    "released": SeriesStyle(BLACK, "p", "O", "--"),  # the authors' own step, in the benchmark
}
"""Of every row that has a name of its own; the same in every picture."""


# 6 colours (the last four are Tol's muted ones), 7 markers, 5 hatches and 5 line styles: 42 others differ from each
# other, and neighbours in all at once.
_COLORS = (SKY, GREY, "#882255", "#999933", "#332288", "#CC6677")
_MARKERS = ("P", "X", "*", "<", ">", "h", "d")
_HATCHES = ("..", "++", "oo", "--", "||")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def order_names(names: Iterable[str]) -> list[str]:
    """Each name once: the known methods first, then the others in the order they come in."""
    found = list(dict.fromkeys(names))
    return [name for name in STYLES if name in found] + [name for name in found if name not in STYLES]


def styles_of(names: Sequence[str]) -> dict[str, SeriesStyle]:
    """The style of each name; a known method's does not depend on the other names."""
    others = [name for name in names if name not in STYLES]
    return {name: STYLES[name] if name in STYLES else _other_style(others.index(name)) for name in names}


def split_names(names: Sequence[str], shared: Sequence[str] = ("kd",)) -> list[list[str]]:
    """The names in groups of `MOST_SERIES` at most, about alike in number, those of `shared` in every one."""
    if len(names) <= MOST_SERIES:
        return [list(names)]
    common = [name for name in names if name in shared]
    others = [name for name in names if name not in shared]
    num_groups = -(-len(others) // (MOST_SERIES - len(common)))
    return [[*common, *map(str, group)] for group in np.array_split(others, num_groups)]


def legend_on_top(figure: Figure, names: Sequence[str], *, spread: Any = None) -> None:
    """One legend over all panels, in as many columns as the figure's width has room for.

    `spread` is the key of what is drawn for one standard deviation, which is then the last entry.
    """
    handles, labels = _entries(figure.axes, names, spread)
    if labels:
        num_columns = _most_columns(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside upper left", ncols=num_columns)


def legend_beside(axes: Axes, panels: Sequence[Axes], names: Sequence[str], *, spread: Any = None) -> None:
    """A legend of some panels, to the right of one of them; entries as in `legend_on_top`."""
    handles, labels = _entries(panels, names, spread)
    if labels:
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.0))


def band_key() -> Any:
    """What a legend shows of a band."""
    from matplotlib.patches import Patch

    return Patch(color=GREY, alpha=0.25, linewidth=0)


def bar_key() -> Any:
    """What a legend shows of an error bar."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GREY, linewidth=1, marker="|", markersize=7)


def _entries(panels: Iterable[Axes], names: Sequence[str], spread: Any) -> tuple[list[Any], list[str]]:
    """Keys and labels of those names that are drawn in the panels, and of the spread."""
    found: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    drawn = [label for label in names if label in found]
    if spread is not None:
        found[SPREAD] = spread
        drawn.append(SPREAD)
    return [found[label] for label in drawn], drawn


def _most_columns(labels: Sequence[str], inches: float) -> int:
    """How many columns fit side by side; matplotlib fills them one after the other, the first ones with one more."""
    lengths = [len(label) for label in labels]
    for num_columns in range(len(labels), 1, -1):
        columns = np.array_split(lengths, num_columns)
        if sum(0.6 + 0.075 * max(column) for column in columns) < inches:  # key, gap, letters of 8 points
            return num_columns
    return 1


def _other_style(index: int) -> SeriesStyle:
    return SeriesStyle(
        color=_COLORS[index % len(_COLORS)],
        marker=_MARKERS[index % len(_MARKERS)],
        hatch=_HATCHES[index % len(_HATCHES)],
        line=_LINES[index % len(_LINES)],
    )
