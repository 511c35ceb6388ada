"""Results of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reptile_distil.runs import Results

_SHORT = {"matthews_correlation": "MCC", "teacher at end": "teacher", "best epoch": "epoch", "examples/s": "ex/s"}


def comparison_table(results: Sequence[Results], *, width: int | None = None) -> str:
    """A Markdown table, aligned for the terminal: one row a run, scores in percent, sizes, times.

    `teacher at end` is the teacher's own score after the run, which only Reptile and MetaDistil change, on the first
    split of the table. A score that is undefined is `-`. Where the table is wider than `width` columns, its headings
    are shortened; where that is not enough, columns are left out, the last one first, but never scores.
    """
    columns = _columns(results)
    table = _draw(columns)
    if width is None or _width(table) <= width:
        return table
    scores = _score_names(results[0])
    splits = {name.partition(" ")[0] for name in scores}
    # Where there is only one dev split, nobody needs to be told which.
    dropped = f"{splits.pop()} " if len(splits) == 1 else ""
    plain = {name.removeprefix(dropped): cells for name, cells in columns.items()}
    short = {_SHORT.get(name, name): cells for name, cells in plain.items()}
    while _width(_draw(short)) > width and len(short) > 1 + len(scores):
        short.popitem()
    return _draw(short)


def _columns(results: Sequence[Results]) -> dict[str, list[str]]:
    """The cells of each column, by heading."""
    scores = [
        [_percent(score) for scores in result["scores"].values() for score in scores.values()] for result in results
    ]
    return {
        "run": [result["method"] for result in results],
        **{name: [row[number] for row in scores] for number, name in enumerate(_score_names(results[0]))},
        "teacher at end": [_teacher_score(result) for result in results],
        "parameters": [f"{result['num_parameters']:,}" for result in results],
        "best epoch": [str(result["best_epoch"]) for result in results],
        "train s": [f"{result['train_seconds']:.1f}" for result in results],
        "examples/s": [f"{result['examples_per_second']:,.0f}" for result in results],
    }


def _draw(columns: Mapping[str, Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    widths = [max(map(len, (heading, *cells))) for heading, cells in columns.items()]
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    return "\n".join([lines[0], rule, *lines[1:]])


def _width(table: str) -> int:
    return len(table.partition("\n")[0])


def _score_names(result: Results) -> list[str]:
    return [f"{split} {name}" for split, scores in result["scores"].items() for name in scores]


def _teacher_score(result: Results) -> str:
    if "teacher" not in result:
        return "-"
    first = next(iter(result["teacher"]["scores_at_end"].values()))
    return " / ".join(_percent(score) for score in first.values())


def _percent(score: float | None) -> str:
    return "-" if score is None or score != score else f"{100 * score:.1f}"
