"""A finished student, weighed: size, operations, speed beside its teacher, ONNX and int8; written as its model card."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reptile_distil.config.config import Config
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError
from reptile_distil.experiments.build_task import scored_splits
from reptile_distil.experiments.finished_run import open_run_folder
from reptile_distil.experiments.setup import build_batches
from reptile_distil.export.onnx_export import OnnxModel, export_onnx, quantize_int8, require_onnx
from reptile_distil.models.checks import fit_padding
from reptile_distil.models.classifier import Classifier, count_parameters
from reptile_distil.models.cost import flops_per_sequence, plain_batch
from reptile_distil.models.loading import find_folder, is_model_of_a_run
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import Environment, Results, read_results
from reptile_distil.runs.results import weak_teacher
from reptile_distil.runtime.measuring import Timing, time_in_turn
from reptile_distil.training.evaluation import predict_logits, score_logits
from reptile_distil.training.metrics import Scores

logger = logging.getLogger(__name__)

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Weight:
    """What one model weighs."""

    num_parameters: int
    num_bytes: int | None
    """Size of the weights' files; None for a model that is no folder."""
    flops: dict[int, int]
    """Operations for one sequence, by its length in tokens."""


@dataclass(frozen=True)
class Speed:
    """Times of one batch on one device, by contender (student, teacher, onnx, int8)."""

    device: str
    batch_size: int
    length: int
    timings: dict[str, Timing]


@dataclass(frozen=True)
class Report:
    """Everything that the model card says of a student."""

    folder: Path
    """The student's model folder."""
    config: Config
    task: Task
    results: Results
    """Those of the student's run."""
    environment: Environment | None
    """The versions that the run was made with; None where it says none any more."""
    weights: dict[str, Weight]
    """By role: student, and teacher where there is one."""
    teacher_scores: dict[str, Scores] | None
    """The teacher's own dev scores before distillation, by split."""
    speeds: list[Speed]
    onnx_difference: float | None = None
    """Largest difference of a logit between onnxruntime and PyTorch."""
    onnx_bytes: dict[str, int] = field(default_factory=dict)
    """Size of each ONNX file, by contender."""
    int8_scores: dict[str, Scores] | None = None
    """Dev scores of the int8 model, measured, by split."""
    weak_teacher: list[str] = field(default_factory=list)
    """What is wrong with the teacher, a sentence each."""
    stand_in: str | None = None
    """The text that an empty one was read as, where the tokenizer makes no tokens of it."""


def make_report(
    model: str | Path,
    *,
    teacher: str | Path | None = None,
    overrides: Sequence[str] = (),
    lengths: Sequence[int] = (),
    batch_sizes: Sequence[int] = (1, 32),
    devices: Sequence[str] = (),
    seconds: float = 2.0,
    onnx: bool = False,
    int8: bool = False,
) -> Report:
    """Measures the student in `model`, the folder of a finished run or its model/ folder.

    Args:
        model: the student.
        teacher: folder or hub name of the teacher to measure beside it; None takes the one of the run.
        overrides: `key=value`, as for every script: `data.path=DIR` where the dev split is needed (`int8`).
        lengths: tokens per sequence; () takes 16, 64 and 128, up to the run's `data.max_length`.
        batch_sizes: sequences per batch.
        devices: () takes the CPU, and CUDA where there is one.
        seconds: how long to measure each combination.
        onnx: also export to `model/onnx/model.onnx` and compare with PyTorch.
        int8: also quantise that, to `model/onnx/model_int8.onnx`, and score it on the dev splits.

    Raises `RunError` as `open_run_folder` does, `ConfigError` for sizes that nothing can be measured with,
    `MissingExtraError` where ONNX is asked for and not installed, and `ModelError` where its logits differ.
    """
    if onnx or int8:
        require_onnx()
    run, config, task, results = open_run_folder(model, overrides)
    environment = RunFolder(run).read_environment()
    lengths = tuple(lengths) or _usual_lengths(config)
    _check_sizes(config, lengths, batch_sizes, seconds)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    folder = run / "model"
    student, tokenizer = load_finetuned(str(folder), task), load_tokenizer(str(folder))
    teacher_name = str(teacher) if teacher is not None else _teacher_of(run, config)
    pytorch = {"student": student.eval()}
    if teacher_name is not None:
        names = () if is_model_of_a_run(teacher_name) else config.teacher.label_names
        teacher_name = str(find_folder(teacher_name) or teacher_name)
        pytorch["teacher"] = load_finetuned(teacher_name, task, names).eval()
        fit_padding(teacher_name, pytorch["teacher"], load_tokenizer(teacher_name))
    folders = {"student": str(folder), "teacher": teacher_name}
    difference, exported = None, {}
    if onnx or int8:
        path = folder / "onnx" / "model.onnx"
        difference = export_onnx(student, tokenizer, path)
        exported["onnx"] = path
        if int8:
            quantize_int8(path, path.with_name("model_int8.onnx"))
            exported["int8"] = path.with_name("model_int8.onnx")
    sessions = {name: OnnxModel(path) for name, path in exported.items()}
    int8_scores = _score(sessions["int8"], config, task, tokenizer) if int8 else None
    teacher_scores = _scores_of_teacher(teacher, teacher_name, results)
    return Report(
        folder=folder,
        config=config,
        task=task,
        results=results,
        environment=environment,
        weights={role: weigh(model, folders[role], lengths) for role, model in pytorch.items()},
        teacher_scores=teacher_scores,
        speeds=_measure(pytorch, sessions, devices or _devices(), batch_sizes, lengths, seconds),
        onnx_difference=difference,
        onnx_bytes={name: path.stat().st_size for name, path in exported.items()},
        int8_scores=int8_scores,
        weak_teacher=describe_weakness(teacher_scores, results),
        stand_in=None if tokenizer("")["input_ids"] else tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id or 0),
    )


def weigh(model: Any, folder: str | None, lengths: Sequence[int]) -> Weight:
    """Parameters, bytes on disk and operations of a model."""
    files = [] if folder is None else [*Path(folder).glob("*.safetensors"), *Path(folder).glob("pytorch_model*.bin")]
    return Weight(
        num_parameters=count_parameters(model),
        num_bytes=sum(file.stat().st_size for file in files) or None,
        flops={length: flops_per_sequence(model, length) for length in lengths},
    )


def _measure(
    pytorch: Mapping[str, Any],
    sessions: Mapping[str, OnnxModel],
    devices: Sequence[str],
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    seconds: float,
) -> list[Speed]:
    speeds = []
    for device in devices:
        # By contender, what computes and the PyTorch model whose vocabulary it reads.
        models = {role: (Classifier(model.to(device)), model) for role, model in pytorch.items()}
        if device == "cpu":
            models |= {name: (Classifier(session), pytorch["student"]) for name, session in sessions.items()}
        for length in lengths:
            for batch_size in batch_sizes:
                calls = {
                    name: _caller(model, _batch_for(source, batch_size, length, device), device)
                    for name, (model, source) in models.items()
                }
                timings = time_in_turn(calls, seconds=seconds)
                speeds.append(Speed(device, batch_size, length, timings))
                logger.info("%s, batch %d, length %d: %s", device, batch_size, length, _milliseconds(timings))
    for model in pytorch.values():
        model.to("cpu")
    return speeds


def _batch_for(model: Any, batch_size: int, length: int, device: str) -> Batch:
    """A batch of tokens that the model knows; with segments, which an exported model may ask for."""
    batch = plain_batch(model, batch_size, length, device)
    return {"token_type_ids": torch.zeros_like(batch["input_ids"]), **batch}


def _caller(model: Classifier, batch: Batch, device: str) -> Callable[[], None]:
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _milliseconds(timings: Mapping[str, Timing]) -> str:
    return ", ".join(f"{name} {1000 * timing.median:.2f} ms" for name, timing in timings.items())


def _score(session: OnnxModel, config: Config, task: Task, tokenizer: Any) -> dict[str, Scores]:
    """Dev scores of an ONNX model, by split."""
    scores = {}
    on_cpu = config.with_values(device="cpu")
    for split in scored_splits(config, task):
        batches = build_batches(on_cpu, task, split, tokenizer, config.train)
        scores[split] = score_logits(predict_logits(Classifier(session), batches), batches, task.metrics)
    return scores


def _teacher_of(run: Path, config: Config) -> str | None:
    """The teacher that the run learned from, or, for one without, the teacher fine-tuned for its neighbours."""
    if config.teacher.finetuned is not None and config.method != "finetune":
        return config.teacher.finetuned
    beside = run.absolute().parent / f"teacher-seed{config.seed}" / "model"
    return str(beside) if beside.is_dir() and run.absolute() != beside.parent else None


def _scores_of_teacher(asked: object, name: str | None, results: Results) -> dict[str, Scores] | None:
    """As in its own results.json; else, for the run's own teacher, as evaluated before the first step."""
    beside = Path(name).absolute().parent / "results.json" if name is not None else None
    if beside is not None and beside.exists():
        return read_results(beside).scores
    if asked is None and results.teacher is not None:
        return results.teacher.scores_at_start
    return None


def describe_weakness(teacher: Mapping[str, Scores] | None, results: Results) -> list[str]:
    """What is wrong with a teacher of these scores, as far as the run knows."""
    if teacher is None:
        return []
    known = results.teacher
    if known is None:
        return weak_teacher(teacher, student=results.scores)
    one_class = known.one_class if known.scores_at_start == teacher else ()
    return weak_teacher(teacher, chance=known.chance, one_class=one_class, student=results.scores)


def _usual_lengths(config: Config) -> tuple[int, ...]:
    longest = config.data.max_length
    return tuple(sorted({length for length in (16, 64, 128) if length <= longest} | {min(longest, 128)}))


def _check_sizes(config: Config, lengths: Sequence[int], batch_sizes: Sequence[int], seconds: float) -> None:
    for length in lengths:
        if not 1 <= length <= config.data.max_length:
            raise ConfigError(
                f"--lengths {length}: the student was trained on 1 to {config.data.max_length} tokens (data.max_length)"
            )
    for batch_size in batch_sizes:
        if batch_size < 1:
            raise ConfigError(f"--batch-sizes {batch_size}: expected 1 or more")
    if not seconds >= 0:  # nor is it NaN
        raise ConfigError(f"--seconds {seconds:g}: expected 0 or more")


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
