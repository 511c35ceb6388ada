"""A benchmark's measurements as a Markdown table, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reptile_distil.benchmark.steps import Case, Measurement
from reptile_distil.errors import RunError
from reptile_distil.plots.style import STYLES
from reptile_distil.runtime.files import replace_file
from reptile_distil.runtime.text_tables import markdown_table

Measured = tuple[Case, list[Measurement]]


NAMES = {
    "finetune": "fine-tuning",
    "kd": "frozen-teacher KD",
    "kd-kept": "frozen-teacher KD, kept logits",
    "reptile": "Reptile",
    "student-first": "Reptile, student first",
    "metadistil": "MetaDistil",
    "prokt": "ProKT",
    "cotrain": "co-training",
    "checkpoints": "KD from checkpoints",
    "lgtm": "LGTM",
    "released": "as released",
}
"""The legend's name of each method that can be measured."""


def to_markdown(case: Case, measurements: Sequence[Measurement]) -> str:
    """A table of one case; the last two columns compare with the released step, where that was measured."""
    released = next((m for m in measurements if m.method == "released"), None)
    columns = (
        "method,s/step,quartiles,CPU s/step,examples/s,peak MB,GFLOP/s,of matmul peak,floor/time,faster,faster (CPU s)"
    )
    rows = [
        (
            m.method,
            f"{m.seconds:.4g}",
            " ".join(f"{value:.3g}" for value in m.quartiles),
            f"{m.processor_seconds:.4g}",
            f"{m.examples_per_second:.1f}",
            f"{m.peak_memory / 1e6:.0f}",
            f"{m.flops_per_second / 1e9:.1f}",
            f"{m.fraction_of_peak:.0%}",
            f"{m.fraction_of_floor:.0%}",
            "-" if released is None else f"{released.seconds / m.seconds:.2f}",
            "-" if released is None else f"{released.processor_seconds / m.processor_seconds:.2f}",
        )
        for m in measurements
    ]
    return f"{case}:\n\n{markdown_table(columns.split(','), rows)}"


def to_json(measured: Sequence[Measured], **about: Any) -> dict[str, Any]:
    """All cases and measurements as JSON values; `about` describes the machine."""
    cases = [
        {**case._asdict(), "methods": [{**m._asdict(), "flops": m.flops_per_second * m.seconds} for m in measurements]}
        for case, measurements in measured
    ]
    return {**about, "cases": cases}


def check_can_plot(path: Path) -> None:
    """Raises `RunError` where matplotlib is not installed, or writes no picture of such a name."""
    try:
        from matplotlib import backend_bases
    except ImportError:
        raise RunError("--plot needs matplotlib: pip install 'reptile_distil[plots]', or leave --plot out") from None
    kinds = backend_bases.FigureCanvasBase.get_supported_filetypes()
    if _kind_of(path).lower() not in kinds:
        raise RunError(f"--plot {path}: expected a name that ends in one of {', '.join(f'.{kind}' for kind in kinds)}")


def _kind_of(path: Path) -> str:
    return path.suffix.removeprefix(".") or "png"


def plot(measured: Sequence[Measured], path: Path, machine: str, *, by_processor: bool = False) -> None:
    """Draws time per step and peak memory of every case and method into an image file.

    As lines where the cases differ in one thing alone that grows (depth, width, batch size or row length), else as
    bars. `by_processor`: the time is the processor's, which other work on the machine hardly changes. Raises `RunError`
    where the file cannot be written, and as `check_can_plot` does.
    """
    check_can_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    growth = what_grows([case for case, _ in measured])
    figure = Figure(figsize=(9, 4 if growth else 1.6 + 0.25 * sum(len(m) for _, m in measured)), layout="constrained")
    FigureCanvasAgg(figure)
    time_axes, memory_axes = figure.subplots(1, 2, sharey=growth is None)
    seconds = [[m.processor_seconds if by_processor else m.seconds for m in methods] for _, methods in measured]
    seconds_label = "CPU seconds per step" if by_processor else "seconds per step"
    gigabytes = [[m.peak_memory / 1e9 for m in methods] for _, methods in measured]
    if growth is None:
        _draw_bars(time_axes, measured, seconds, "{:.3g} s")
        _draw_bars(memory_axes, measured, gigabytes, "{:.2f} GB")
        time_axes.set_xlabel(seconds_label)
        memory_axes.set_xlabel("peak memory above start, GB")
        time_axes.set_yticks(range(len(measured)), [str(case).replace(", ", "\n") for case, _ in measured])
        time_axes.invert_yaxis()
    else:
        _draw_lines(time_axes, measured, seconds, growth, seconds_label)
        _draw_lines(memory_axes, measured, gigabytes, growth, "peak memory above start, GB")
    handles, labels = time_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"One training step on {machine}", fontsize=10)
    write = partial(figure.savefig, dpi=150, format=_kind_of(path))
    try:
        replace_file(path, write)
    except OSError as error:
        raise RunError(f"--plot {path}: cannot be written: {error.strerror}") from None


def what_grows(cases: Sequence[Case]) -> tuple[str, list[float]] | None:
    """Name and values, by case, of the one number in which three or more cases differ; None if there is none."""
    if len(cases) < 3 or any(case.teacher is not None for case in cases):
        return None
    first, *_ = cases
    numbers: dict[str, list[float]] = {}
    if len({case.teacher_layers / case.student_layers for case in cases}) == 1:
        ratio = f"the student has 1 / {first.teacher_layers // first.student_layers} of them"
        numbers[f"layers of the teacher ({ratio})"] = [case.teacher_layers for case in cases]
    elif len({(case.teacher_layers, case.student_layers) for case in cases}) > 1:
        return None
    numbers["width"] = [case.width for case in cases]
    numbers["rows in a batch"] = [case.batch_size for case in cases]
    if all(case.lengths.isdecimal() for case in cases):
        numbers["tokens in a row"] = [int(case.lengths) for case in cases]
    elif len({case.lengths for case in cases}) > 1:
        return None
    growing = [(name, values) for name, values in numbers.items() if len(set(values)) > 1]
    return growing[0] if len(growing) == 1 else None


def _draw_lines(
    axes: Any,
    measured: Sequence[Measured],
    values: Sequence[Sequence[float]],
    growth: tuple[str, list[float]],
    label: str,
) -> None:
    for index, m in enumerate(measured[0][1]):
        style = STYLES[m.method]
        points = sorted(zip(growth[1], (of_case[index] for of_case in values), strict=True))
        axes.plot(*zip(*points, strict=True), color=style.color, marker=style.marker, label=NAMES[m.method])
    axes.set_xlabel(growth[0])
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted(growth[1]))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(axes: Any, measured: Sequence[Measured], values: Sequence[Sequence[float]], label: str) -> None:
    methods = [m.method for m in measured[0][1]]
    height = 0.8 / len(methods)
    for index, method in enumerate(methods):
        style = {"color": STYLES[method].color, "hatch": STYLES[method].hatch, "edgecolor": "white"}
        places = [row - 0.4 + height * (index + 0.5) for row in range(len(measured))]
        widths = [of_case[index] for of_case in values]
        bars = axes.barh(places, widths, height, label=NAMES[method], **style)
        axes.bar_label(bars, [label.format(width) for width in widths], padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
