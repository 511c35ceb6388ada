"""The text of a dry run, for a terminal of 80 columns; in ASCII where the terminal cannot show more."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

from reptile_distil.experiments.dry_run import Measured, ModelFacts, Plan, RunPlan, Status
from reptile_distil.models.layer_map import LayerMap
from reptile_distil.runtime.text_tables import plain_table

WIDTH = 80
ESTIMATE = "An estimate from two measured steps of each run, evaluation included, loading not."
_LABEL = 11  # columns of the words on the left
_PLAIN = str.maketrans({"↑": "^", "·": "."})


def encodable_on(stream: TextIO, text: str) -> str:
    """The text itself where the stream's encoding has its characters, else with `^` and `.` for arrows and dots."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return text.translate(_PLAIN)
    return text


def describe_plan(plan: Plan) -> str:
    """The whole plan: task, data, models, layer map, runs, time, memory and disk."""
    blocks = ["Dry run: nothing is trained, and nothing is written into a run folder.", "\n".join(_facts(plan))]
    to_run = [run for run in plan.runs if run.measured is not None]
    if to_run:
        models = [(role, facts.name, *_sizes(facts)) for role, facts in _models(to_run).items()]
        blocks.append(plain_table([("model", "start", "layers", "width", "parameters"), *models], num_left=2))
    blocks += [_layer_map(plan, run.measured) for run in to_run if run.measured and run.measured.layer_map]
    blocks.append(
        plain_table([(run.role, describe_status(run.status), str(run.status.folder)) for run in plan.runs], num_left=3)
    )
    if to_run:
        header = ("run", "rows", "steps/epoch", "steps", "s/step", "time left", "memory")
        blocks.append(plain_table([header, *(_steps(run, run.measured) for run in to_run if run.measured)]))
        blocks.append("\n".join(_needs(plan)))
    return "\n\n".join(blocks)


def item(label: str, text: str) -> str:
    """A label on the left, and its text beside it, in lines of at most 80 columns where its words allow it."""
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = label.ljust(_LABEL), " " * _LABEL
    return wrapper.fill(text)


def format_seconds(seconds: float) -> str:
    """Seconds as `8.5 s`, `12 min`, `3.1 h` or `2.5 days`."""
    for limit, size, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def format_bytes(size: float) -> str:
    """Bytes as `12.3 MB` or `1.2 GB`."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def describe_status(status: Status) -> str:
    """The state of a run's folder: new, finished, or the step at which it goes on."""
    if status.state == "finished":
        return "finished: not run again"
    return "new" if status.state == "new" else f"goes on from step {status.step:,}"


def _facts(plan: Plan) -> Iterator[str]:
    config, task = plan.config, plan.task
    answers = (
        f"{'any of the labels' if task.multi_label else 'classes'} {', '.join(task.label_names)}"
        if task.label_names
        else "one number"
    )
    yield item("task", f"{task.name}: {answers}; {' and '.join(task.metrics)}")
    measured = [run.measured for run in plan.runs if run.measured is not None]
    if measured:
        sizes = "; ".join(f"{split} {count:,} rows" for split, count in measured[-1].num_rows.items())
        unlabelled = max(one.num_transfer_rows for one in measured)
        sizes += f"; transfer {unlabelled:,} rows without labels" if unlabelled else ""
        yield item("data", f"{sizes}; up to {config.data.max_length} tokens each")
        shared = ", the same for teacher and student" if any(one.teacher for one in measured) else ""
        yield item("tokenizer", f"{measured[-1].vocabulary:,} tokens{shared}")
    yield item("computing", f"on {plan.device} in {config.precision}; seed {config.seed}")


def _models(runs: Sequence[RunPlan]) -> dict[str, ModelFacts]:
    """The teacher and the student by role, where a run has them."""
    teachers = [run.measured.teacher for run in runs if run.measured and run.measured.teacher]
    teachers += [run.measured.student for run in runs if run.measured and run.role == "teacher"]
    students = [run.measured.student for run in runs if run.measured and run.role != "teacher"]
    named = {"teacher": teachers[-1:], "student": students[-1:]}
    return {role: facts[0] for role, facts in named.items() if facts}


def _sizes(facts: ModelFacts) -> tuple[str, str, str]:
    return str(facts.num_layers), str(facts.width), f"{facts.num_parameters:,}"


def _layer_map(plan: Plan, measured: Measured) -> str:
    reptile = plan.config.reptile
    assert measured.layer_map is not None
    assert measured.teacher is not None
    name = reptile.layer_map if isinstance(reptile.layer_map, str) else "of its own"
    said = f"Layer map {name}: each student layer moves the teacher layers above it (update: {reptile.update}). "
    parts = ["embeddings"] * reptile.move_embeddings + ["pooler", "classifier"] * reptile.move_head
    said += f"Also moved: {', '.join(parts)}." if parts else "Nothing else is moved."
    picture = draw_layer_map(measured.layer_map, num_teacher_layers=measured.teacher.num_layers, width=WIDTH)
    return textwrap.fill(said, WIDTH) + "\n" + picture


def _steps(run: RunPlan, measured: Measured) -> Sequence[str]:
    trial = measured.trial
    return (
        run.role,
        f"{measured.num_rows['train']:,}"
        + (f" + {measured.num_transfer_rows:,}" if measured.num_transfer_rows else ""),
        f"{measured.batches_per_epoch:,}",
        f"{measured.num_steps:,}",
        f"{trial.step_seconds:.3f}" if trial.step_seconds < 10 else f"{trial.step_seconds:.1f}",
        format_seconds(run.seconds),
        format_bytes(trial.peak_memory),
    )


def _needs(plan: Plan) -> Iterator[str]:
    yield item("time", f"about {format_seconds(plan.seconds)} in all. {ESTIMATE}")
    owner = "the GPU's, at its peak" if plan.device == "cuda" else "the whole process's, at its peak"
    yield item("memory", f"{owner}, in the steps measured")
    folder = plan.runs[0].status.folder.parent
    yield item(
        "disk", f"about {format_bytes(plan.disk_needed)} in {folder}, where {format_bytes(plan.disk_free)} are free"
    )


_LABEL_WIDTH = 7  # "teacher", "student"


def draw_layer_map(layer_map: LayerMap, *, num_teacher_layers: int, width: int = 80) -> str:
    """Three lines: the teacher's layers, an arrow at each that is moved, and the student layer that moves it.

    Where the layers do not fit into `width` columns, they go on in further lines. A dot stands for a teacher layer that
    nothing moves.

    >>> print(draw_layer_map(((1,), (3,)), num_teacher_layers=4))
    teacher  0  1  2  3
             ·  ↑  ·  ↑
    student     0     1
    """
    moved_by = {layer: k for k, layers in enumerate(layer_map) for layer in layers}
    cell = 1 + max(2, len(str(num_teacher_layers - 1)))
    per_line = max((width - _LABEL_WIDTH) // cell, 1)
    lines = []
    for start in range(0, num_teacher_layers, per_line):
        layers = range(start, min(start + per_line, num_teacher_layers))
        rows = {
            "teacher": [str(layer) for layer in layers],
            "": ["↑" if layer in moved_by else "·" for layer in layers],
            "student": [str(moved_by.get(layer, "")) for layer in layers],
        }
        for name, cells in rows.items():
            lines.append((name.ljust(_LABEL_WIDTH) + "".join(text.rjust(cell) for text in cells)).rstrip())
    return "\n".join(lines)
