"""A report as a model card: README.md with the front matter that the hub reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import RunError
from reptile_distil.experiments.build_task import VALIDATION
from reptile_distil.export.report import Report
from reptile_distil.export.serving import onnx_program, pipeline_program
from reptile_distil.models.toy import is_toy_model
from reptile_distil.plugin_names import folder_name
from reptile_distil.runtime.files import write_text
from reptile_distil.runtime.measuring import Timing
from reptile_distil.runtime.text_tables import Code, escape_markdown, markdown_table, percent
from reptile_distil.training.metrics import Scores

PAPER = "Knowledge Distillation with Reptile Meta-Learning for Pretrained Language Model Compression"
CITATION = f"""@inproceedings{{ma-etal-2022-knowledge,
  title = {{{PAPER}}},
  author = {{Ma and Wang and Yu and Zhang}},
  booktitle = {{Proceedings of the 29th International Conference on Computational Linguistics (COLING)}},
  year = {{2022}},
}}"""

_METHODS = {
    "reptile": "distilled from a teacher that learns to teach by first-order Reptile updates",
    "metadistil": "distilled from a teacher that learns to teach by second-order gradients (MetaDistil)",
    "prokt": "distilled from a teacher that goes on learning the task and stays near its student (ProKT)",
    "checkpoints": "distilled from a frozen teacher's epochs in their order",
    "lgtm": "distilled from a teacher that learns from the influence of its soft labels (LGTM)",
    "cotrain": "distilled from a teacher that goes on learning the task",
    "kd": "distilled from a frozen teacher",
    "finetune": "fine-tuned without a teacher",
    "teacher": "fine-tuned as a teacher",
}
_HUB_METRICS = {"pearson": "pearsonr", "subset_accuracy": "accuracy"}  # the rest have the same names on the hub
_HUB_METRICS |= {f"f1_{mean}": "f1" for mean in ("macro", "micro", "weighted")}
_CONTENDERS = {"student": "student", "teacher": "teacher", "onnx": "student, ONNX", "int8": "student, ONNX int8"}
_FILES = {"onnx": "model.onnx", "int8": "model_int8.onnx"}
_PATHS = (
    *("data.path", "data.transfer.files", "teacher.pretrained", "teacher.finetuned", "teachers", "student.pretrained"),
    "task.files",
)


def write_card(report: Report, *, license: str = "other") -> Path:
    """Writes README.md beside the student's weights; returns its path. Raises `RunError` where it cannot."""
    path = report.folder / "README.md"
    try:
        write_text(path, render_card(report, license=license))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def render_card(report: Report, *, license: str = "other") -> str:
    """The card's text: front matter, what the model is, how to use it, scores, speed, recipe, limits, citation."""
    parts = [f"---\n{_front_matter(report, license).to_yaml()}\n---", *_sections(report)]
    return "\n\n".join(parts) + "\n"


def performance_tables(report: Report) -> str:
    """Size, score and speed as Markdown tables."""
    weak = [f"**A weak teacher:** {escape_markdown(sentence)}." for sentence in report.weak_teacher]
    return "\n\n".join([_size_table(report), _score_table(report), *weak, *_speed_tables(report)])


def _front_matter(report: Report, license: str) -> ModelCardData:
    task, results = report.task, report.results
    on_hub = task.name in GLUE
    base = report.config.student.pretrained if report.config.student.init == "pretrained" else None
    base = base or report.config.teacher.pretrained
    return ModelCardData(
        language="en" if on_hub or task.is_generated else None,
        license=license,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=base if _is_hub_name(base) else None,
        datasets=["nyu-mll/glue"] if on_hub else [task.hub.name] if task.hub else None,
        metrics=list(dict.fromkeys(_HUB_METRICS.get(metric, metric) for metric in task.metrics)),
        tags=["knowledge-distillation", *(["reptile", "meta-learning"] if results.method == "reptile" else [])],
        model_name=_name(report),
        eval_results=list(_eval_results(report)) or None,
    )


def _eval_results(report: Report) -> Iterator[EvalResult]:
    """The defined scores; the hub accepts no others. Rows held out of training are none of a split, and left out."""
    task = report.task
    for split, scores in report.results.scores.items():
        if split not in task.dev_splits:
            continue
        for metric, score in scores.items():
            if score is not None and math.isfinite(score):
                yield EvalResult(
                    task_type="text-classification",
                    task_name="Text classification",
                    dataset_type="nyu-mll/glue" if task.name in GLUE else task.name,
                    dataset_name=f"GLUE {task.folder}" if task.folder else task.name,
                    dataset_config=task.name if task.name in GLUE else None,
                    dataset_split=split.replace("dev", "validation") if task.name in GLUE else split,
                    metric_type=_HUB_METRICS.get(metric, metric),
                    metric_name=f"{split} {metric}",
                    metric_value=round(score, 6),
                )


def _sections(report: Report) -> Iterator[str]:
    method, task = report.results.method, report.task
    yield f"# {escape_markdown(_name(report))}"
    labels = ", ".join(task.label_names) if task.label_names else "one number"
    labels = f"any number of {labels}" if task.multi_label else labels
    yield (
        f"A text classifier of {report.weights['student'].num_parameters:,} parameters for the task "
        f"{escape_markdown(task.name)} ({'pairs of texts' if task.is_pair else 'single texts'}; output: "
        f"{escape_markdown(labels)}), {_METHODS.get(method) or escape_markdown(f'trained with the method {method}')}."
    )
    what = "The method is that of" if method == "reptile" else "It is something to compare with the method of"
    yield f"{what} Ma, Wang, Yu, Zhang: {PAPER}. COLING 2022. Trained with `reptile_distil`."
    yield "## Use"
    yield f"```python\n{pipeline_program(task, max_length=report.config.data.max_length)}\n```"
    if report.onnx_bytes:
        yield _onnx_sentence(report)
        yield f"```python\n{onnx_program(task, max_length=report.config.data.max_length, file=_fast_file(report))}\n```"
    yield "## Score, size and speed"
    yield performance_tables(report)
    yield _conditions(report)
    yield "## Recipe"
    yield _data_sentence(report)
    yield _recipe_table(report)
    yield "## Limits"
    yield "\n".join(f"- {limit}" for limit in _limits(report))
    yield "## Cite"
    yield f"```bibtex\n{CITATION}\n```"


def _onnx_sentence(report: Report) -> str:
    files = " and ".join(f"`{_FILES[name]}`" for name in report.onnx_bytes)
    return (
        f"Without PyTorch, {files} in `onnx/` need `pip install onnxruntime transformers` alone; PATH is this folder, "
        "from the hub `huggingface_hub.snapshot_download(REPO)`:"
    )


def _fast_file(report: Report) -> str:
    """The ONNX file that the program of the card opens: the faster one, as far as they were measured."""
    ratios = {name: statistics.fmean(_speedups(report, "cpu", name) or [0.0]) for name in report.onnx_bytes}
    return _FILES[max(ratios, key=ratios.__getitem__)]


def _speedups(report: Report, device: str, form: str) -> list[float]:
    """The student's time in PyTorch over that of another form of it, for each batch and length on a device."""
    timings = [speed.timings for speed in report.speeds if speed.device == device]
    return [of_size["student"].median / of_size[form].median for of_size in timings if form in of_size]


def _fast_path(report: Report, device: str) -> str | None:
    """Which form of the student is the fastest on a device; None where there is but one."""
    ratios = {form: _speedups(report, device, form) for form in report.onnx_bytes}
    ratios = {form: values for form, values in ratios.items() if values}
    if not ratios:
        return None
    form = max(ratios, key=lambda name: statistics.fmean(ratios[name]))
    if statistics.fmean(ratios[form]) <= 1:
        return f"**The fast path on {device}** is PyTorch: no ONNX file is faster on average of these sizes."
    low, high = min(ratios[form]), max(ratios[form])
    times = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return f"**The fast path on {device}** is `onnx/{_FILES[form]}`: {times} times as fast as the student in PyTorch."


def _size_table(report: Report) -> str:
    lengths = list(report.weights["student"].flops)
    rows = [["model", "parameters", "size on disk", *(f"GFLOPs at {length} tokens" for length in lengths)]]
    for role, weight in report.weights.items():
        flops = [_giga(weight.flops[length]) for length in lengths]
        rows.append([role, f"{weight.num_parameters:,}", _megabytes(weight.num_bytes), *flops])
    for name, size in report.onnx_bytes.items():
        rows.append([_CONTENDERS[name], "as the student", _megabytes(size), *("" for _ in lengths)])
    return markdown_table(rows[0], rows[1:])


def _score_table(report: Report) -> str:
    scores = {"student": report.results.scores}
    if report.teacher_scores is not None:
        scores["teacher"] = report.teacher_scores
    if report.int8_scores is not None:
        scores["int8"] = report.int8_scores
    names = [(split, metric) for split, values in scores["student"].items() for metric in values]
    rows = [["model", *(f"{split} {metric}" for split, metric in names)]]
    for name, by_split in scores.items():
        rows.append([_CONTENDERS[name], *(percent(_find(by_split, split, metric)) for split, metric in names)])
    if "teacher" in scores:
        kept = [_kept(scores["student"], scores["teacher"], split, metric) for split, metric in names]
        rows.append(["kept of the teacher's", *(["weak teacher"] * len(names) if report.weak_teacher else kept)])
    return markdown_table(rows[0], rows[1:])


def _speed_tables(report: Report) -> Iterator[str]:
    """A table for each device, and its fast path; `speed-up` is the teacher's time over the model's own."""
    for device in dict.fromkeys(speed.device for speed in report.speeds):
        speeds = [speed for speed in report.speeds if speed.device == device]
        has_teacher = "teacher" in speeds[0].timings
        rows = [[f"{device}: batch x length", "model", "ms a batch", "(middle half)", "sequences/s"]]
        rows[0] += ["speed-up"] * has_teacher
        for speed in speeds:
            for name, timing in speed.timings.items():
                row = [f"{speed.batch_size} x {speed.length}", _CONTENDERS[name], *_times(timing, speed.batch_size)]
                row += [f"{speed.timings['teacher'].median / timing.median:.2f}"] if has_teacher else []
                rows.append(row)
        yield markdown_table(rows[0], rows[1:])
        if sentence := _fast_path(report, device):
            yield sentence


def _conditions(report: Report) -> str:
    sentences = [
        f"Scores are in percent, on {_scored_rows(report)}, with one seed ({report.results.seed}): n = 1, so nothing "
        "is known of their spread."
    ]
    if report.speeds:
        rounds = min(timing.num_rounds for speed in report.speeds for timing in speed.timings.values())
        sentences.append(
            "Times are medians (with the middle half) of "
            f"{rounds} rounds or more on random tokens without padding, all models measured in turn in float32 with "
            f"{_threads()}, tokenizing not counted."
        )
    sentences.append(
        "FLOPs are those of the matrix products in a forward pass of one sequence, as PyTorch counts them; a "
        "multiplication and its addition are two."
    )
    if report.onnx_difference is not None:
        sentences.append(
            f"The ONNX file's logits differ from PyTorch's by {report.onnx_difference:.1e} at most, over random full "
            "and padded batches."
        )
    if report.int8_scores is not None:
        sentences.append(
            "The int8 file (dynamic quantisation by onnxruntime) was scored on the same rows. The range of its "
            "numbers is a batch's, so its answer to a text depends a little on the texts beside it."
        )
    return " ".join(sentences)


def _scored_rows(report: Report) -> str:
    """Which rows the scores are of, and which of them chose the epoch."""
    if report.config.data.validation_fraction is None:
        return "the dev split, of the best epoch on that split"
    held_out = "training rows that were held out, which chose the epoch"
    return f"the dev split, and on {held_out}" if report.task.dev_splits else held_out


def _data_sentence(report: Report) -> str:
    source = f"the GLUE benchmark's {report.task.folder}" if report.task.folder else f"the task {report.task.name}"
    unlabelled = report.results.num_transfer_rows
    beside = f" and {unlabelled:,} rows without labels" if unlabelled else ""
    made_with = report.environment
    versions = "" if made_with is None else f" (torch {made_with.torch}, transformers {made_with.transformers})"
    return escape_markdown(
        f"Trained on {report.results.num_train_rows:,} rows of {source}{beside} in {report.results.num_steps:,} steps, "
        f"{report.results.train_seconds:,.0f} seconds on {report.results.device}{versions}. "
        "The values that decide the result:"
    )


def _recipe_table(report: Report) -> str:
    decisive: dict[str, Any] = {**report.results.decisive}
    if report.config.student.init != "pretrained":
        decisive.pop("student.pretrained", None)  # a default that nothing reads
    rows = [
        ((Code(key),), (Code(_public(key, value)),)) for key, value in decisive.items() if value not in (None, [], "")
    ]
    return markdown_table(["key", "value"], rows, num_left=2)


def _limits(report: Report) -> Iterator[str]:
    task = report.task
    yield "One seed and one data set: a difference of a point or two to another model may be chance."
    yield _choice_sentence(report)
    yield f"Texts longer than {report.config.data.max_length} tokens were cut in training."
    if report.stand_in is not None:
        yield (
            f"An empty text has no tokens for its tokenizer, and the programs above fail on it: give them "
            f"{escape_markdown(report.stand_in)}, as which it was read in training."
        )
    if task.name in GLUE:
        yield "English only, and only text like the benchmark's; it has its data's biases, and its teacher's."
    elif task.is_generated:
        yield "A toy: its language has a few dozen generated words. It is of no use but to try things out."
    else:
        yield "It knows only text like its training data, and has its biases."
    yield "The licences of the data and of the pretrained models apply."


def _choice_sentence(report: Report) -> str:
    """What chose the epoch whose weights these are, and what that means for the scores."""
    if report.config.data.validation_fraction is None:
        return "The dev split chose the best epoch and is also what is reported, so the score is a little too high."
    held_out = f"Training rows that were held out chose the best epoch, so the {VALIDATION} score is a little too high"
    return f"{held_out}; the dev score is not." if report.task.dev_splits else f"{held_out}."


def _name(report: Report) -> str:
    return f"{report.task.name}-{folder_name(report.results.method)}"


def _is_hub_name(name: str | None) -> bool:
    """Whether a model came from the hub rather than from a folder or the toy world."""
    if name is None or is_toy_model(name) or name.startswith((".", "/", "~")) or Path(name).exists():
        return False
    return name.count("/") <= 1


def _public(key: str, value: Any) -> Any:
    """The value, of a path on the disk only the last part: the rest is private."""
    if isinstance(value, list | tuple):
        return [_public(key, item) for item in value]
    return Path(value).name if key.startswith(_PATHS) and not _is_hub_name(value) else value


def _find(scores: Mapping[str, Scores], split: str, metric: str) -> float | None:
    return scores.get(split, {}).get(metric)


def _kept(student: Mapping[str, Scores], teacher: Mapping[str, Scores], split: str, metric: str) -> str:
    own, its = _find(student, split, metric), _find(teacher, split, metric)
    return "-" if own is None or not its or its < 0 else f"{100 * own / its:.1f} %"


def _times(timing: Timing, batch_size: int) -> list[str]:
    spread = f"{1000 * timing.low:.2f} to {1000 * timing.high:.2f}"
    return [f"{1000 * timing.median:.2f}", spread, f"{batch_size / timing.median:,.0f}"]


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g}"


def _megabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:,.1f} MB"


def _threads() -> str:
    number = torch.get_num_threads()
    return f"{number} CPU thread{'s' * (number > 1)}"
