"""Tables as text for a terminal, Markdown, LaTeX and HTML; what their cells hold is escaped here.

A row is a sequence of cells; a cell is a text, or a tuple of pieces of text of which some may be `Bold` or `Code`.
The first column is aligned to the left, the others to the right.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate


class Bold(str):
    """A piece of a cell that is set in bold."""


class Code(str):
    """A piece of a cell that is set as code."""


Cell = str | tuple[str, ...]
Row = Sequence[Cell]

_BOOKTABS = TableFormat(
    lineabove=Line(r"\toprule", "", "", ""),
    linebelowheader=Line(r"\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=Line(r"\bottomrule", "", "", ""),
    headerrow=DataRow("", " & ", r" \\"),
    datarow=DataRow("", " & ", r" \\"),
    padding=0,
    with_header_hide=None,
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def plain_table(rows: Sequence[Row], *, num_left: int = 1) -> str:
    """The rows in aligned columns without rules, the first `num_left` columns to the left."""
    return _draw([[_one_line("".join(cell)) for cell in row] for row in rows], "plain", num_left=num_left)


def markdown_table(header: Row, rows: Sequence[Row], *, num_left: int = 1) -> str:
    """A Markdown table that is aligned for the terminal too, the first `num_left` columns to the left."""
    first, *others = ([_markdown_cell(cell) for cell in row] for row in (header, *rows))
    # Given as a header, the first row would be two spaces wider than its words. Without one, "pipe" draws a rule above.
    return _draw([first, SEPARATING_LINE, *others], "pipe", num_left=num_left).partition("\n")[2]


def terminal_table(header: Row, rows: Sequence[Row], *, width: int) -> str:
    """The table in parts that are at most `width` characters wide, one below the other, each with the first column.

    Every cell is there, whole: long ones of the first column and long headers are broken into lines. Only where the
    first column and one other need more than `width` is a part wider. A table that fits is one part, as Markdown.
    """
    whole = markdown_table(header, rows)
    if max(map(len, whole.splitlines())) <= width:
        return whole
    cells = [[_one_line("".join(map(_starred, _pieces(cell)))) for cell in row] for row in (header, *rows)]
    names, *columns = zip(*cells, strict=True)
    names = tuple(_broken(name, max(20, width // 3)) for name in names)
    parts: list[list[tuple[str, ...]]] = []
    room = 0
    for title, *values in columns:
        widest = max(map(len, values), default=0)
        title = _broken(title, max(widest, 12))
        needed = 2 + max(widest, _width(title))  # 2 between columns
        if needed > room:
            parts.append([])
            room = width - max(map(_width, names))
        parts[-1].append((title, *values))
        room -= needed
    return "\n\n".join(
        _draw([first, SEPARATING_LINE, *others], "simple").strip("\n").partition("\n")[2].rpartition("\n")[0]
        for first, *others in (list(zip(names, *part, strict=True)) for part in parts)
    )


def latex_table(header: Row, groups: Iterable[Sequence[Row]]) -> str:
    r"""A `tabular` with the rules of the package booktabs, and a `\midrule` above each group of rows."""
    rows: list[Sequence[str]] = [[_latex_cell(cell) for cell in header]]
    for group in groups:
        rows += [SEPARATING_LINE, *([_latex_cell(cell) for cell in row] for row in group)]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", _draw(rows, _BOOKTABS), r"\end{tabular}"])


def html_table(rows: Sequence[Row], *, title: str = "", has_header: bool = False) -> str:
    """The rows as an HTML table below its title. Without rows, the title alone."""
    head = f"<p><b>{escape(title)}</b></p>" if title else ""
    cells = [["".join(cell) for cell in row] for row in rows]
    if not cells:
        return head
    return head + _draw(cells[has_header:], "html", header=cells[0] if has_header else ())


def escape_markdown(text: str) -> str:
    """`text` on one line so that Markdown shows it as it is: no new cell, emphasis, code, tag, entity or link."""
    return re.sub(r"[\\|`*]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|!(?=\[)|\](?=[(\[])", r"\\\g<0>", _one_line(text))


def escape_latex(text: str) -> str:
    """`text` on one line so that LaTeX prints it, with a minus before a number."""
    if text == "-":
        return "--"
    escaped = "".join(_LATEX.get(char, char) for char in _one_line(text))
    return re.sub(r"(?<![\w.-])-(?=[\d.])", "$-$", escaped).replace(" - ", " $-$ ")


def percent(score: float | None, places: int = 1) -> str:
    """A score in percent, to one place; `-` where it is undefined."""
    return "-" if score is None or not math.isfinite(score) else f"{100 * score:.{places}f}"


def list_scores(scores: Mapping[str, float | None]) -> str:
    """Scores by name in one line: `f1 81.22 %, accuracy 80.00 %`."""
    return ", ".join(f"{name} {with_sign(score)}" for name, score in scores.items())


def with_sign(score: float | None) -> str:
    """A score in percent to two places, with the sign: `81.22 %`; `-` where it is undefined."""
    number = percent(score, 2)
    return number if number == "-" else f"{number} %"


def _draw(
    rows: Sequence[Sequence[str]], style: str | TableFormat, *, num_left: int = 1, header: Sequence[str] = ()
) -> str:
    num_columns = len(header or rows[0])
    sides = ["left"] * num_left + ["right"] * (num_columns - num_left)
    return str.__str__(tabulate(rows, header, style, disable_numparse=True, colalign=sides))


def _markdown_cell(cell: Cell) -> str:
    return "".join(map(_markdown_piece, _pieces(cell)))


def _markdown_piece(piece: str) -> str:
    if isinstance(piece, Bold):
        return f"**{escape_markdown(piece)}**"
    # In code nothing but | is escaped; where that is not enough, the piece is set as text.
    if isinstance(piece, Code) and "`" not in piece and "\\|" not in piece:
        return f"`{_one_line(piece)}`".replace("|", "\\|")
    return escape_markdown(piece)


def _latex_cell(cell: Cell) -> str:
    return "".join(map(_latex_piece, _pieces(cell)))


def _latex_piece(piece: str) -> str:
    text = escape_latex(piece)
    command = r"\textbf" if isinstance(piece, Bold) else r"\texttt" if isinstance(piece, Code) else ""
    return f"{command}{{{text}}}" if command else text


def _broken(text: str, width: int) -> str:
    """In lines of at most `width` characters; a longer word is a line."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _starred(piece: str) -> str:
    return f"**{piece}**" if isinstance(piece, Bold) else piece


def _width(text: str) -> int:
    """Of the longest line."""
    return max(map(len, text.split("\n")))


def _pieces(cell: Cell) -> tuple[str, ...]:
    return (cell,) if isinstance(cell, str) else cell


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
