"""What a benchmark has measured: as a table, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptile_distil.benchmark import Case, Measurement
from reptile_distil.errors import RunError

Measured = tuple[Case, list[Measurement]]

# Okabe and Ito's colours, which people with any colour vision can tell apart, and a hatch each for print.
_LOOKS = {
    "finetune": ("#56B4E9", ""),
    "kd": ("#E69F00", "//"),
    "reptile": ("#009E73", ""),
    "released": ("#555555", "\\\\"),
}
_NAMES = {"finetune": "fine-tuning", "kd": "frozen-teacher KD", "reptile": "Reptile", "released": "as released"}


def to_markdown(case: Case, measurements: Sequence[Measurement]) -> str:
    """A table of one case; the last two columns compare with the released step, where that was measured."""
    released = next((m for m in measurements if m.method == "released"), None)
    columns = (
        "method,s/step,quartiles,CPU s/step,examples/s,peak MB,GFLOP/s,of matmul peak,floor/time,faster,faster (CPU s)"
    )
    lines = [f"{case}:", "", f"| {columns.replace(',', ' | ')} |", "|---|" + "---:|" * columns.count(",")]
    for m in measurements:
        cells = [
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
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_json(measured: Sequence[Measured], **about: Any) -> dict[str, Any]:
    """Everything, with what the machine was and could do in `about`."""
    cases = [{**case._asdict(), "methods": [m._asdict() for m in measurements]} for case, measurements in measured]
    return {**about, "cases": cases}


def check_can_plot() -> None:
    """Raises `RunError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RunError("--plot needs matplotlib: pip install 'reptile_distil[plots]', or leave --plot out") from None


def plot(measured: Sequence[Measured], path: Path, machine: str) -> None:
    """Time per step and peak memory of every case and method, as bars, into an image file."""
    check_can_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 1.1 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    time_axes, memory_axes = figure.subplots(1, 2, sharey=True)
    _draw_bars(time_axes, measured, [[m.seconds for m in methods] for _, methods in measured], "{:.3g} s")
    _draw_bars(memory_axes, measured, [[m.peak_memory / 1e9 for m in methods] for _, methods in measured], "{:.2f} GB")
    time_axes.set_xlabel("seconds per step")
    memory_axes.set_xlabel("peak memory above start, GB")
    time_axes.set_yticks(range(len(measured)), [str(case).replace(", ", "\n") for case, _ in measured])
    time_axes.invert_yaxis()
    handles, labels = time_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"One training step on {machine}", fontsize=10)
    figure.savefig(path, dpi=150)


def _draw_bars(axes: Any, measured: Sequence[Measured], values: Sequence[Sequence[float]], label: str) -> None:
    methods = [m.method for m in measured[0][1]]
    height = 0.8 / len(methods)
    for index, method in enumerate(methods):
        colour, hatch = _LOOKS[method]
        places = [row - 0.4 + height * (index + 0.5) for row in range(len(measured))]
        widths = [of_case[index] for of_case in values]
        bars = axes.barh(places, widths, height, color=colour, hatch=hatch, edgecolor="white", label=_NAMES[method])
        axes.bar_label(bars, [label.format(width) for width in widths], padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
