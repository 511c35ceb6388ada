"""From a configuration to a method, its optimizers and schedules, and to models that compute as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reptile_distil.builders.loss import build_loss
from reptile_distil.builders.own_method import OwnMethod
from reptile_distil.builders.plugins import load_method, make
from reptile_distil.config.config import Config
from reptile_distil.config.sections import TEACHER_MOVES, ReptileConfig, Role, TrainConfig
from reptile_distil.data.batches import Batches
from reptile_distil.errors import ConfigError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw, fresh_eps
from reptile_distil.methods.checkpoints import CheckpointDistiller, Weights
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation, TeacherRegularization
from reptile_distil.methods.step import GradientStep
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.plugin_names import is_plugin
from reptile_distil.runtime.processes import ALONE, Processes
from reptile_distil.training.cuda_graphs import GraphedSteps
from reptile_distil.training.loop import Method, count_steps


class BuiltMethod(NamedTuple):
    """A method and the optimizers it steps, under the names that their learning rates are logged by."""

    method: Method
    optimizers: dict[str, Optimizer]
    modules: Mapping[str, nn.Module] = MappingProxyType({})
    """What changes beside student and teacher: the loss, where that has weights of its own; a method of one's own."""
    moves_teacher: bool = False


def build_method(
    config: Config,
    student: Student,
    teacher: Teacher | None,
    settings: TrainConfig,
    *,
    role: Role,
    num_steps: int,
    epochs: Sequence[Weights] = (),
    processes: Processes = ALONE,
    weights: Tensor | None = None,
) -> BuiltMethod:
    """Fine-tuning where there is no teacher, or distillation from one that stays as it is or moves.

    `num_steps` are those of the whole run; `epochs` are the teacher's, for the method that learns from them.
    """
    if teacher is None:
        shared = _shared_arguments(student, settings, processes)
        fine_tuner = FineTuner(student, class_weights=weights, **shared)
        built = BuiltMethod(fine_tuner, {"lr": shared["student_optimizer"]})
    else:
        loss = build_loss(config, teacher.model, student.model, weights)
        learners = nn.ModuleList([student, loss])  # the loss may have weights of its own
        shared = _shared_arguments(learners, settings, processes)
        if is_plugin(role):
            built = _build_own(config, student, teacher, role, loss=loss, shared=shared)
        elif role == "checkpoints":
            num_steps = max(1, round(config.checkpoints.until * num_steps))
            shared |= {"loss": loss, "epochs": epochs, "num_steps": num_steps}
            built = BuiltMethod(CheckpointDistiller(teacher, student, **shared), {"lr": shared["student_optimizer"]})
        else:
            built = _build_method(config, student, teacher, settings, role=role, loss=loss, shared=shared)
        modules = {**built.modules, **({"loss": loss} if loss.state_dict() else {})}
        built = built._replace(modules=modules, moves_teacher=built.moves_teacher or role in TEACHER_MOVES)
    if not config.compute.cuda_graphs:
        return built
    optimizers = tuple(built.optimizers.values())
    return built._replace(method=GraphedSteps(built.method, optimizers, batch_size=settings.batch_size))


def _build_own(
    config: Config, student: Student, teacher: Teacher, name: str, *, loss: DistillationLoss, shared: dict[str, Any]
) -> BuiltMethod:
    """A method of the user's own."""
    method_class = load_method(config, name)
    made = make(f"method = {name!r}", method_class, teacher, student, loss=loss, **shared, **config.method_options)
    moves_teacher = bool(getattr(method_class, "moves_teacher", False))
    own = OwnMethod(made, name, moves_teacher=moves_teacher, models=(teacher, student))
    optimizers = {"lr": shared["student_optimizer"], **own.optimizers()}
    return BuiltMethod(own, optimizers, own.state(), own.moves_teacher)


def _shared_arguments(learners: nn.Module, settings: TrainConfig, processes: Processes) -> dict[str, Any]:
    """The arguments of every method, a new `student_optimizer` among them."""
    return {
        "student_optimizer": _adamw(learners, settings, lr=settings.lr, weight_decay=settings.weight_decay),
        "max_grad_norm": settings.max_grad_norm,
        "micro_batch_size": settings.micro_batch_size,
        "processes": processes,
    }


def _build_method(
    config: Config,
    student: Student,
    teacher: Teacher,
    settings: TrainConfig,
    *,
    role: Role,
    loss: DistillationLoss,
    shared: dict[str, Any],
) -> BuiltMethod:
    optimizer = shared["student_optimizer"]
    if role == "kd":
        kd = KnowledgeDistiller(teacher, student, loss=loss, extra_rows=config.loss.extra_rows, **shared)
        return BuiltMethod(kd, {"lr": optimizer})
    if role == "metadistil":
        return _build_metadistil(config, student, teacher, settings, loss=loss, student_optimizer=optimizer)
    if role == "lgtm":
        return _build_lgtm(config, student, teacher, settings, loss=loss, student_optimizer=optimizer)
    if role in ("prokt", "cotrain"):
        return _build_teacher_that_learns_on(config, student, teacher, settings, role=role, loss=loss, shared=shared)
    return _build_reptile(config, student, teacher, settings, loss=loss, shared=shared)


def _build_reptile(
    config: Config,
    student: Student,
    teacher: Teacher,
    settings: TrainConfig,
    *,
    loss: DistillationLoss,
    shared: dict[str, Any],
) -> BuiltMethod:
    """`shared` are the arguments of every method, `student_optimizer` among them."""
    reptile = config.reptile
    teacher_optimizer: Optimizer = (
        _adamw(teacher, settings, lr=reptile.mu, weight_decay=settings.weight_decay if reptile.released else 0.0)
        if reptile.update == "adamw"
        else torch.optim.SGD(teacher.parameters(), lr=reptile.mu, fused=config.compute.cuda_graphs or None)
    )
    optimizers = {"lr": shared["student_optimizer"], "teacher_lr": teacher_optimizer}
    if reptile.task_lr:
        optimizers["teacher_task_lr"] = _adamw(teacher, settings, lr=reptile.task_lr)
    distiller = ReptileDistiller(
        teacher,
        student,
        loss=loss,
        teacher_optimizer=teacher_optimizer,
        layer_map=reptile.layer_map,
        update=reptile.update,
        order=reptile.order,
        inner_optimizer=reptile.inner_optimizer,
        inner_lr=_inner_lr(reptile, settings),
        inner_eps=settings.adam_eps if reptile.inner_eps is None else reptile.inner_eps,
        inner_adamw=settings.adamw,
        inner_weight_decay=settings.weight_decay if reptile.released else 0.0,
        share_forward=reptile.share_forward,
        ablation=_ablation(reptile),
        regularization=_regularization(reptile, teacher, optimizers.get("teacher_task_lr"), shared, loss.class_weights),
        **shared,
    )
    if distiller.inner_learner is not None and reptile.inner_optimizer == "persistent_adamw":
        optimizers["inner_lr"] = distiller.inner_learner.optimizer
    return BuiltMethod(distiller, optimizers)


def _adamw(model: nn.Module, settings: TrainConfig, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
    return adamw(model, lr=lr, weight_decay=weight_decay, eps=settings.adam_eps, kind=settings.adamw)


def _inner_lr(reptile: ReptileConfig, settings: TrainConfig) -> float:
    """The rate of equation 1. The released code makes its schedule anew in each step: it stays at its first rate."""
    if reptile.released and settings.warmup_ratio:
        return 0.0
    return settings.lr if reptile.inner_lr is None else reptile.inner_lr


def _ablation(reptile: ReptileConfig) -> Ablation:
    return Ablation(
        inner_steps=reptile.inner_steps,
        inner_batch=reptile.inner_batch,
        every=reptile.every,
        move_head=reptile.move_head,
        move_embeddings=reptile.move_embeddings,
    )


def _regularization(
    reptile: ReptileConfig,
    teacher: Teacher,
    task_optimizer: Optimizer | None,
    shared: dict[str, Any],
    weights: Tensor | None,
) -> TeacherRegularization | None:
    """The teacher's task step and pull; None where there is neither."""
    options = {name: value for name, value in shared.items() if name != "student_optimizer"}
    task_step = None if task_optimizer is None else GradientStep(task_optimizer, **options)
    has_none = task_step is None and not reptile.pull
    if has_none:
        return None
    return TeacherRegularization(teacher, task_step=task_step, pull=reptile.pull, class_weights=weights)


def _build_teacher_that_learns_on(
    config: Config,
    student: Student,
    teacher: Teacher,
    settings: TrainConfig,
    *,
    role: Role,
    loss: DistillationLoss,
    shared: dict[str, Any],
) -> BuiltMethod:
    """ProKT, or co-training, which is ProKT without its student's part."""
    own = config.prokt if role == "prokt" else config.cotrain
    teacher_optimizer = _adamw(teacher, settings, lr=own.teacher_lr)
    shared = {**shared, "loss": loss, "teacher_optimizer": teacher_optimizer, "order": own.order}
    method = (
        ProKTDistiller(teacher, student, beta=config.prokt.beta, **shared)
        if role == "prokt"
        else CoTrainer(teacher, student, **shared)
    )
    return BuiltMethod(method, {"lr": shared["student_optimizer"], "teacher_lr": teacher_optimizer})


def _build_metadistil(
    config: Config,
    student: Student,
    teacher: Teacher,
    settings: TrainConfig,
    *,
    loss: DistillationLoss,
    student_optimizer: Optimizer,
) -> BuiltMethod:
    metadistil = config.metadistil
    teacher_optimizer = _adamw(teacher, settings, lr=metadistil.teacher_lr)
    distiller = MetaDistiller(
        teacher,
        student,
        loss=loss,
        student_optimizer=student_optimizer,
        teacher_optimizer=teacher_optimizer,
        assumed_optimizer=metadistil.assumed_optimizer,
        assumed_lr=settings.lr if metadistil.assumed_lr is None else metadistil.assumed_lr,
        assumed_eps=fresh_eps(settings.adam_eps, settings.adamw),
        max_grad_norm=settings.max_grad_norm,
    )
    return BuiltMethod(distiller, {"lr": student_optimizer, "teacher_lr": teacher_optimizer})


def _build_lgtm(
    config: Config,
    student: Student,
    teacher: Teacher,
    settings: TrainConfig,
    *,
    loss: DistillationLoss,
    student_optimizer: Optimizer,
) -> BuiltMethod:
    lgtm = config.lgtm
    teacher_optimizer = _adamw(teacher, settings, lr=lgtm.teacher_lr)
    distiller = InfluenceDistiller(
        teacher,
        student,
        loss=loss,
        student_optimizer=student_optimizer,
        teacher_optimizer=teacher_optimizer,
        beta=lgtm.beta,
        influence=lgtm.influence,
        radius=lgtm.radius,
        every=lgtm.every,
        assumed_optimizer=lgtm.assumed_optimizer,
        assumed_lr=settings.lr if lgtm.assumed_lr is None else lgtm.assumed_lr,
        assumed_eps=fresh_eps(settings.adam_eps, settings.adamw),
        max_grad_norm=settings.max_grad_norm,
        micro_batch_size=settings.micro_batch_size,
    )
    return BuiltMethod(distiller, {"lr": student_optimizer, "teacher_lr": teacher_optimizer})


def build_schedules(
    optimizers: dict[str, Optimizer], batches: Batches, settings: TrainConfig, *, mu_until: float = 1.0
) -> dict[str, LRScheduler]:
    """For each optimizer, a linear rise over the warm-up and a linear fall to 0 at the last step.

    `teacher_lr` is at 0 after the fraction `mu_until` of the steps; `inner_lr`, that of equation 1, is constant.
    """
    num_steps = count_steps(batches, settings.epochs, settings.max_steps)
    num_warmup_steps = round(settings.warmup_ratio * num_steps)
    last_steps = {"teacher_lr": max(num_warmup_steps + 1, round(mu_until * num_steps))}
    return {
        name: transformers.get_constant_schedule(optimizer)
        if name == "inner_lr"
        else transformers.get_linear_schedule_with_warmup(optimizer, num_warmup_steps, last_steps.get(name, num_steps))
        for name, optimizer in optimizers.items()
    }


def autocast_dtype(config: Config) -> torch.dtype | None:
    """The dtype of forward passes where it is not that of the weights."""
    return torch.bfloat16 if config.precision == "bf16" else None


def forward_options(config: Config) -> dict[str, Any]:
    """How `Classifier` computes."""
    return {"autocast_dtype": autocast_dtype(config), "packed": config.data.packing}


def check_processes(config: Config, processes: Processes) -> None:
    """Raises `ConfigError` for a method that several processes cannot share."""
    for name in ("metadistil", "lgtm"):
        if processes.count > 1 and name in (config.method, *config.compare_with):
            raise ConfigError(
                f"method {name} takes one process, but {processes.count} were started: start it with python"
            )
