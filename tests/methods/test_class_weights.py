"""Class weights stand in the task loss of every method, in its inner steps, its quiz and its teacher's own steps."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss, task_loss
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation, TeacherRegularization
from reptile_distil.methods.step import GradientStep
from tests.helpers.models import batch, bert

WEIGHTS = torch.tensor([0.5, 3.0, 1.5], dtype=torch.float64)


def batch_of(kind, seed=0):
    rows = batch(seed=seed)
    return rows if kind == "classes" else {**rows, "labels": torch.nn.functional.one_hot(rows["labels"], 3).double()}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def logs_of(method, kind, weights, micro_batch_size=None):
    """What the first step of a method logs, on models that are the same each time; alpha is small, not 0."""
    teacher, student = (bert(layers, seed=layers, dtype=torch.float64) for layers in (4, 2))
    shared = {"student_optimizer": sgd(student), "micro_batch_size": micro_batch_size}
    loss = DistillationLoss(alpha=1e-9, class_weights=weights)
    if method == "finetune":
        return FineTuner(student, class_weights=weights, **shared).step(batch_of(kind))
    if method == "kd":
        return KnowledgeDistiller(teacher, student, loss=loss, **shared).step(batch_of(kind))
    if method == "extra_rows":
        kd = KnowledgeDistiller(teacher, student, loss=loss, extra_rows=0.5, **shared)
        return kd.step(batch_of(kind), batch_of(kind, seed=5))
    if method in ("prokt", "cotrain"):
        made = {"prokt": ProKTDistiller, "cotrain": CoTrainer}[method]
        return made(teacher, student, loss=loss, teacher_optimizer=sgd(teacher), **shared).step(batch_of(kind))
    if method == "lgtm":
        lgtm = InfluenceDistiller(teacher, student, loss=loss, teacher_optimizer=sgd(teacher), **shared)
        return lgtm.step(batch_of(kind), batch_of(kind, seed=5))
    if method == "metadistil":
        options = {"student_optimizer": sgd(student), "teacher_optimizer": sgd(teacher)}
        return MetaDistiller(teacher, student, loss=loss, **options).step(batch_of(kind), batch_of(kind, seed=5))
    options = {"loss": loss, "teacher_optimizer": sgd(teacher), "update": "interpolate", **shared}
    if method == "teacher_step":
        step = GradientStep(sgd(teacher))
        options["regularization"] = TeacherRegularization(teacher, task_step=step, class_weights=weights)
    if method == "student_first":
        options["order"] = "student_first"
    if method == "inner_steps":
        ablation = Ablation(inner_steps=2)
        distiller = ReptileDistiller(teacher, student, ablation=ablation, share_forward=False, **options)
        return distiller.step(batch_of(kind), [batch_of(kind), batch_of(kind, seed=3)])
    return ReptileDistiller(teacher, student, **options).step(batch_of(kind))


TERMS = {
    "finetune": ("loss", "task_loss"),
    "kd": ("loss", "task_loss"),
    "reptile": ("loss", "task_loss", "inner_loss"),
    "student_first": ("loss", "task_loss"),
    "inner_steps": ("task_loss",),
    "teacher_step": ("loss", "task_loss", "inner_loss", "teacher_task_loss"),
    "metadistil": ("loss", "task_loss", "assumed_loss", "quiz_loss"),
    "lgtm": ("loss", "task_loss", "assumed_loss", "quiz_loss", "auxiliary_loss"),
    "prokt": ("loss", "task_loss", "teacher_loss"),
    "cotrain": ("loss", "task_loss", "teacher_loss"),
    "extra_rows": ("loss", "task_loss", "extra_rows_loss"),
}


@pytest.mark.parametrize("kind", ["classes", "sets"])
@pytest.mark.parametrize("method", TERMS)
def test_every_task_loss_of_a_step_is_weighted(method, kind):
    student = bert(2, seed=2, dtype=torch.float64)
    plain, weighted = (logs_of(method, kind, weights) for weights in (None, WEIGHTS))
    rows = batch_of(kind)
    logits = student.train()(**{name: rows[name] for name in ("input_ids", "attention_mask")}).logits
    assert weighted["task_loss"].item() == pytest.approx(task_loss(logits, rows["labels"], WEIGHTS).item(), rel=1e-9)
    for name in TERMS[method]:
        assert weighted[name].item() != pytest.approx(plain[name].item(), rel=1e-3), name


@pytest.mark.parametrize("method", ["metadistil", "teacher_step", "lgtm", "extra_rows"])
def test_equal_weights_multiply_the_quiz_and_the_teachers_own_loss(method):
    names = {"teacher_step": "teacher_task_loss", "extra_rows": "extra_rows_loss"}
    name = names.get(method, "quiz_loss")
    tiny = 1 + 1e-7  # the models hardly move apart by it
    plain, weighted = (
        logs_of(method, "classes", torch.full((3,), weight, dtype=torch.float64)) for weight in (1, tiny)
    )
    assert weighted[name].item() / plain[name].item() == pytest.approx(tiny, rel=1e-8)


@pytest.mark.parametrize("kind", ["classes", "sets"])
@pytest.mark.parametrize("method", ["finetune", "kd", "reptile", "student_first", "teacher_step"])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_give_the_weighted_loss_of_the_batch(method, kind, micro_batch_size):
    whole, parts = (logs_of(method, kind, WEIGHTS, size) for size in (None, micro_batch_size))
    for name in ("loss", "task_loss", "grad_norm"):
        assert parts[name].item() == pytest.approx(whole[name].item(), rel=1e-9)
