"""How long a step takes, for each method and for the step as it was released: taking turns, in one process.

Methods that are compared step on the same batches one after the other, so that a busy machine slows all of them alike.
Memory is measured apart, one process for each method.
"""

from __future__ import annotations

import itertools
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor

from reptile_distil.benchmark.arithmetic import PASSES, Peaks, Shape, floor_seconds, step_flops
from reptile_distil.benchmark.released_step import ReleasedStep
from reptile_distil.benchmark.token_lengths import QUANTILES, Lengths, Quantiles, draw_lengths
from reptile_distil.data.order import length_grouped_batches
from reptile_distil.data.tasks import get_task
from reptile_distil.errors import ConfigError, RunError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.checkpoints import CheckpointDistiller
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher, count_parameters
from reptile_distil.models.cost import plain_batch
from reptile_distil.models.pretrained import load_pretrained
from reptile_distil.runtime.measuring import is_out_of_memory, peak_memory, reset_peak_memory, wait_for
from reptile_distil.training.cuda_graphs import LENGTH_STEP, WARM_UP_STEPS, GraphedSteps
from reptile_distil.training.loop import Method

METHODS = tuple(PASSES)

_MOST_TOKENS = 2**20
"""In a row: models with more positions are none that are loaded here."""

Step = Callable[..., Any]
"""A method's `step`, of a batch and perhaps a quiz batch."""


class Case(NamedTuple):
    """What is measured: two models, how many rows a batch has, and how long they are."""

    lengths: str
    """A task's name, or a number of tokens that all rows have."""
    batch_size: int = 32
    teacher_layers: int = 12
    student_layers: int = 6
    width: int = 384
    teacher: str | None = None
    """Folder of a model, instead of random weights in the shape above."""
    student: str | None = None

    def __str__(self) -> str:
        models = f"{self.teacher_layers}->{self.student_layers} layers of {self.width}"
        if self.teacher is not None:
            models = f"{Path(self.teacher).name} -> {Path(str(self.student)).name}"
        return f"{models}, batch {self.batch_size}, lengths {self.lengths}"


class Settings(NamedTuple):
    """How it is measured."""

    methods: tuple[str, ...] = METHODS
    device: str = "cpu"
    precision: str = "fp32"
    """Of all methods but the released step, which runs in float32."""
    graphs: bool = False
    """Replay all steps but the released one from CUDA graphs."""
    num_threads: int | None = None
    num_batches: int = 5
    """Batches of a task's epoch, from its shortest to its longest in even steps; one where all rows are equal."""
    num_rounds: int = 3
    """Times that each method steps on each batch; the median counts."""
    max_length: int = 128
    """Longest row, and what the released step pads a task's rows to."""
    quantiles: Quantiles = QUANTILES
    """The tasks' distributions of lengths."""
    quiz_batch_size: int | None = None
    """Rows of a quiz; None: as many as the batch has."""


class StepCost(NamedTuple):
    """What one step took, by the clock and in processor time of all threads."""

    seconds: float
    processor_seconds: float


class Measurement(NamedTuple):
    """One method in one case. Seconds are per step."""

    method: str
    seconds: float
    """Mean over the batches of the median over the rounds."""
    processor_seconds: float
    """The same of all CPU threads' time: what a quiet machine would take on one thread, also on a busy one."""
    quartiles: tuple[float, float, float]
    """Of all steps, so that the batches' different lengths spread them too."""
    examples_per_second: float
    peak_memory: int
    """Bytes above what the process held before it built the models."""
    flops_per_second: float
    """Of what was computed, padding included."""
    fraction_of_peak: float
    fraction_of_floor: float
    """The floor (real tokens alone, machine's measured peaks) over the measured time."""


def make_cases(
    lengths: Sequence[str],
    batch_sizes: Sequence[int],
    depths: Sequence[str],
    widths: Sequence[int],
    *,
    models: Sequence[str] | None = None,
    quantiles: Quantiles = QUANTILES,
) -> list[Case]:
    """Every combination; `models`, a teacher's and a student's folder, take the place of depths and widths.

    Raises `ConfigError` for depths other than teacher:student, for what no model can be, for an empty batch, and for
    rows longer than a model reads; `DataError` as `draw_lengths` does, and `ModelError` where a folder holds no model.
    """
    for size in batch_sizes:
        if size < 1:
            raise ConfigError(f"--batch-sizes {size}: expected at least 1")
    _check_lengths(lengths, models)
    for name in lengths:
        draw_lengths(name, 1, table=quantiles)
    if models is not None:
        teacher, student = models
        pairs = itertools.product(lengths, batch_sizes)
        return [Case(name, size, teacher=teacher, student=student) for name, size in pairs]
    cases = []
    for depth, width, name, size in itertools.product(depths, widths, lengths, batch_sizes):
        match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", depth)
        if match is None or int(match[1]) % int(match[2]):
            raise ConfigError(f"--depths {depth}: expected teacher's and student's layers, as in 12:6, one a multiple")
        if width < 64 or width % 64:
            raise ConfigError(f"--widths {width}: expected a multiple of 64")
        cases.append(Case(name, size, int(match[1]), int(match[2]), width))
    return cases


def _check_lengths(lengths: Sequence[str], models: Sequence[str] | None) -> None:
    """Raises `ConfigError` for rows of more tokens than a model has positions for."""
    longest = max((int(name) for name in lengths if name.isdecimal()), default=0)
    if models is None:
        if longest > (positions := transformers.BertConfig().max_position_embeddings):
            raise ConfigError(f"--lengths {longest}: the models have {positions} positions; give at most so many")
        return
    for name in models:
        model = _model(name, 0, 0, None, "cpu")
        if longest > _MOST_TOKENS or (longest and not _reads(model, longest)):
            raise ConfigError(f"--lengths {longest}: {name} does not read rows of so many tokens; give fewer")


def _reads(model: Any, length: int) -> bool:
    """Whether the model has positions for a row of so many tokens."""
    try:
        with torch.no_grad():
            model(**plain_batch(model, 1, length, "cpu"))
    except (IndexError, RuntimeError, ValueError) as error:  # each architecture has its own
        if is_out_of_memory(error):
            raise
        return False
    return True


def run_case(case: Case, settings: Settings, peaks: Peaks) -> list[Measurement]:
    """Measures every method of the settings in turn."""
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    rows = grouped_rows(case, settings)
    steps, shape = {}, None
    for method in settings.methods:
        steps[method], shape = build_step(method, case, settings)
    assert shape is not None
    taken = time_in_turns(steps, rows, case, settings)
    steps.clear()  # the models' memory is wanted for the measurement of memory
    return [_summarise(method, taken[method], rows, case, shape, settings, peaks) for method in settings.methods]


def grouped_rows(case: Case, settings: Settings) -> list[Lengths]:
    """The lengths of the rows of each batch that is measured, grouped as in training."""
    if case.lengths.isdecimal():
        return [draw_lengths(case.lengths, case.batch_size)]
    num_rows = 64 * case.batch_size
    lengths = draw_lengths(case.lengths, num_rows, max_length=settings.max_length, table=settings.quantiles)
    batches = [lengths[rows] for rows in length_grouped_batches(lengths, case.batch_size, seed=0, epoch=1)]
    batches = sorted((batch for batch in batches if len(batch) == case.batch_size), key=lambda batch: int(batch.max()))
    # The middle of each of `num_batches` equal parts: their mean stands for the epoch's.
    places = (np.arange(settings.num_batches) + 0.5) / settings.num_batches * len(batches)
    return [batches[int(place)] for place in places]


def make_batch(lengths: Lengths, padded_to: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens in rows of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), padded_to)
    mask = torch.arange(padded_to)[None, :] < torch.from_numpy(lengths)[:, None]
    batch = {
        "input_ids": torch.randint(1000, 30000, size, generator=generator) * mask,
        "attention_mask": mask.long(),
        "token_type_ids": torch.zeros(size, dtype=torch.long),
        "labels": torch.randint(0, 2, (len(lengths),), generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


NEVER_GRAPHED = ("metadistil", "checkpoints", "lgtm", "released")
"""Methods whose steps are taken as usual, `--graphs` or not."""


def padded_length(method: str, lengths: Lengths, case: Case, settings: Settings) -> int:
    """Tokens to a row: the longest row's, but all that are allowed in the released step on a task's rows."""
    if method == "released" and not case.lengths.isdecimal():
        return settings.max_length
    step = LENGTH_STEP if settings.graphs and method not in NEVER_GRAPHED else 1
    return -(-int(lengths.max()) // step) * step


def quiz_lengths(lengths: Lengths, settings: Settings) -> Lengths:
    """Of the quiz beside a batch: a quiz's rows are drawn like a batch's, so on average over the batches as long."""
    return np.resize(lengths, settings.quiz_batch_size or len(lengths))


def make_step_batches(method: str, lengths: Lengths, case: Case, settings: Settings) -> list[dict[str, Tensor]]:
    """The arguments of the method's step: a training batch, and for some a quiz batch of other tokens."""
    batch = make_batch(lengths, padded_length(method, lengths, case, settings), settings.device)
    if method == "kd-kept":
        generator = torch.Generator().manual_seed(0)
        batch["teacher_logits"] = torch.randn(len(lengths), 2, generator=generator).to(settings.device)
    if not PASSES[method].quizzes:
        return [batch]
    of_quiz = quiz_lengths(lengths, settings)
    return [batch, make_batch(of_quiz, int(of_quiz.max()), settings.device, seed=1)]


def build_step(method: str, case: Case, settings: Settings, *, attention: str | None = None) -> tuple[Step, Shape]:
    """A method's step on models of its own, and their shape; `attention` as in transformers, None: its choice."""
    attention = "eager" if method == "released" else attention
    teacher = _model(case.teacher, case.teacher_layers, case.width, attention, settings.device)
    student = _model(case.student, case.student_layers, case.width, attention, settings.device)
    shape = Shape(
        teacher.config.num_hidden_layers,
        student.config.num_hidden_layers,
        student.config.hidden_size,
        student.config.intermediate_size,
        count_parameters(teacher),
        count_parameters(student),
    )
    if method == "released":
        return ReleasedStep(teacher, student).step, shape
    dtype = torch.bfloat16 if settings.precision == "bf16" else None
    learner = Student(student, autocast_dtype=dtype)
    optimizer = adamw(student, lr=5e-5)
    if method == "finetune":
        return _step_of(FineTuner(learner, student_optimizer=optimizer), [optimizer], case, settings), shape
    tutor, loss = Teacher(teacher, autocast_dtype=dtype), DistillationLoss()
    if method in ("kd", "kd-kept"):
        kd = KnowledgeDistiller(tutor, learner, loss=loss, student_optimizer=optimizer)
        return _step_of(kd, [optimizer], case, settings), shape
    shared: dict[str, Any] = {"loss": loss, "student_optimizer": optimizer}
    if method == "checkpoints":  # what it takes on is read once an epoch
        return CheckpointDistiller(tutor, learner, **shared, epochs=(), num_steps=1).step, shape
    if method == "metadistil":
        return MetaDistiller(tutor, learner, **shared, teacher_optimizer=adamw(teacher, lr=1e-5)).step, shape
    if method == "lgtm":
        return InfluenceDistiller(tutor, learner, **shared, teacher_optimizer=adamw(teacher, lr=3e-5)).step, shape
    teacher_optimizer = adamw(teacher, lr=5e-5)
    shared["teacher_optimizer"] = teacher_optimizer
    if method in ("prokt", "cotrain"):
        joint = (ProKTDistiller if method == "prokt" else CoTrainer)(tutor, learner, **shared)
        return _step_of(joint, [optimizer, teacher_optimizer], case, settings), shape
    order: Literal["teacher_first", "student_first"] = "student_first" if method == "student-first" else "teacher_first"
    reptile = ReptileDistiller(tutor, learner, **shared, order=order)
    return _step_of(reptile, [optimizer, teacher_optimizer], case, settings), shape


def time_in_turns(
    steps: dict[str, Step], rows: Sequence[Lengths], case: Case, settings: Settings
) -> dict[str, list[list[StepCost]]]:
    """What each method's steps took, by batch and round, after steps that do not count.

    These are one on the first batch, or with graphs as many on each as it takes to record one.
    """
    taken: dict[str, list[list[StepCost]]] = {method: [[] for _ in rows] for method in steps}
    warm_up = [*range(len(rows))] * (WARM_UP_STEPS + 1) if settings.graphs else [0]
    turns = [*warm_up, *(place for _ in range(settings.num_rounds) for place in range(len(rows)))]
    for turn, place in enumerate(turns, start=-len(warm_up)):
        for method, step in steps.items():
            batches = make_step_batches(method, rows[place], case, settings)
            time_of_step = _time(step, batches, settings.device)
            if turn >= 0:
                taken[method][place].append(time_of_step)
    return taken


def measure_memory(method: str, case: Case, settings: Settings) -> int:
    """Peak bytes of a step on the longest batch, in a process of its own. Raises `RunError` where that is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_memory_of, method, case, settings).result()
        except BrokenProcessPool:
            raise RunError(f"{case}: the process that measured {method} was killed; is there enough memory?") from None


def describe_machine(device: str) -> str:
    """Processor and number of threads, for a table's caption."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _step_of(method: Method, optimizers: Sequence[torch.optim.Optimizer], case: Case, settings: Settings) -> Step:
    return GraphedSteps(method, optimizers, batch_size=case.batch_size).step if settings.graphs else method.step


def _time(step: Step, batches: Sequence[dict[str, Tensor]], device: str) -> StepCost:
    wait_for(device)
    started, processor_started = time.perf_counter(), time.process_time()
    step(*batches)
    wait_for(device)
    return StepCost(time.perf_counter() - started, time.process_time() - processor_started)


def _memory_of(method: str, case: Case, settings: Settings) -> int:
    before = 0 if settings.device == "cuda" else peak_memory(settings.device)
    step, _ = build_step(method, case, settings)
    longest = grouped_rows(case, settings)[-1]
    batches = make_step_batches(method, longest, case, settings)
    for _ in range(WARM_UP_STEPS if settings.graphs else 1):
        step(*batches)
    reset_peak_memory(settings.device)  # a graph's memory is allocated when it is recorded, that is now
    step(*batches)
    return peak_memory(settings.device) - before


def _summarise(
    method: str,
    taken: Sequence[Sequence[StepCost]],
    rows: Sequence[Lengths],
    case: Case,
    shape: Shape,
    settings: Settings,
    peaks: Peaks,
) -> Measurement:
    mean = statistics.fmean(statistics.median(time.seconds for time in of_batch) for of_batch in taken)
    processor = statistics.fmean(statistics.median(time.processor_seconds for time in of_batch) for of_batch in taken)
    padded = [np.full(len(lengths), padded_length(method, lengths, case, settings)) for lengths in rows]
    computed = statistics.fmean(step_flops(method, shape, row, quiz_lengths(row, settings)) for row in padded)
    arithmetic = "reptile" if method == "released" else method  # the floor is the method's, not the implementation's
    floor = statistics.fmean(floor_seconds(arithmetic, shape, row, peaks, quiz_lengths(row, settings)) for row in rows)
    low, middle, high = np.quantile([time.seconds for of_batch in taken for time in of_batch], [0.25, 0.5, 0.75])
    return Measurement(
        method=method,
        seconds=mean,
        processor_seconds=processor,
        quartiles=(float(low), float(middle), float(high)),
        examples_per_second=case.batch_size / mean,
        peak_memory=measure_memory(method, case, settings),
        flops_per_second=computed / mean,
        fraction_of_peak=computed / mean / peaks.flops,
        fraction_of_floor=floor / mean,
    )


def _model(name: str | None, num_layers: int, width: int, attention: str | None, device: str) -> Any:
    if name is not None:
        model = load_pretrained(name, get_task("sst2"), seed=0)
    else:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 32 if width <= 384 else width // 64,
            intermediate_size=4 * width,
        )
        model = transformers.BertForSequenceClassification(config)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.to(device)
