"""Results of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from reptile_distil.runs import Results


def comparison_table(results: Sequence[Results]) -> str:
    """A Markdown table, aligned for the terminal: one row a run, scores in percent, sizes, times.

    `teacher at end` is the teacher's own score after the run, which only Reptile and MetaDistil change. A score that is
    undefined is `-`.
    """
    rows = [["run", *_score_names(results[0]), "teacher at end", "parameters", "best epoch", "train s", "examples/s"]]
    for result in results:
        rows.append(
            [
                result["method"],
                *(_percent(score) for scores in result["scores"].values() for score in scores.values()),
                _teacher_score(result),
                f"{result['num_parameters']:,}",
                str(result["best_epoch"]),
                f"{result['train_seconds']:.1f}",
                f"{result['examples_per_second']:,.0f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(_align(row, widths)) + " |" for row in rows]
    rule = (
        "|" + "|".join("-" * (width + 1) + ("-" if column == 0 else ":") for column, width in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _score_names(result: Results) -> list[str]:
    return [f"{split} {name}" for split, scores in result["scores"].items() for name in scores]


def _teacher_score(result: Results) -> str:
    if "teacher" not in result:
        return "-"
    first = next(iter(result["teacher"]["scores_at_end"].values()))
    return " / ".join(_percent(score) for score in first.values())


def _percent(score: float | None) -> str:
    return "-" if score is None or score != score else f"{100 * score:.1f}"


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """First column to the left, numbers to the right."""
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
