"""What keeps a moving teacher good at its task: equal to a literal version, and off unless asked for."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import TeacherRegularization
from reptile_distil.methods.step import GradientStep
from tests.helpers.models import batch, bert, changed, weights
from tests.oracles.reptile import literal_teacher_step
from tests.oracles.reptile_variants import LiteralAdam, LiteralSgd, literal_distillation, literal_meta_step

SETTINGS = {
    "alpha": 0.3,
    "temperature": 4.0,
    "max_grad_norm": 1.0,
    "layer_map": "skip",
    "update": "interpolate",
    "stays": (),
}
LR, MU, EPS = 1e-2, 1e-2, 1e-4


def models(dtype=torch.float64):
    return bert(4, seed=1, dtype=dtype), bert(2, seed=2, dtype=dtype)


def adam(model, lr=LR):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0, eps=EPS)


def distiller(teacher, student, regularization=None, order="teacher_first"):
    inner = {"inner_optimizer": "sgd", "inner_lr": LR} if order == "teacher_first" else {}
    return ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=adam(student),
        teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=MU),
        update="interpolate",
        order=order,
        **inner,
        regularization=regularization,
    )


def literal_task_step(teacher, x, optimizer):
    inputs = {name: tensor for name, tensor in x.items() if name != "labels"}
    logits = teacher(**inputs).logits
    loss = -logits.log_softmax(dim=1)[range(len(logits)), x["labels"]].mean()
    teacher.zero_grad()
    loss.backward()
    norm = torch.sqrt(sum(theta.grad.square().sum() for theta in teacher.parameters()))
    for theta in teacher.parameters():
        theta.grad *= min(1.0, 1.0 / (norm.item() + 1e-6))
    optimizer.step(teacher)
    return loss.detach()


@pytest.mark.parametrize(("task_lr", "pull"), [(1e-3, 0.0), (0.0, 0.125), (1e-3, 0.125)])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("order", ["teacher_first", "student_first"])
def test_three_steps_with_upkeep_equal_the_literal_ones(task_lr, pull, micro_batch_size, order):
    (teacher, student), (slow_teacher, slow_student) = models(), models()
    slow_teacher.eval()
    start = copy.deepcopy(slow_teacher)
    regularization = TeacherRegularization(
        teacher,
        task_step=GradientStep(adam(teacher, task_lr), micro_batch_size=micro_batch_size) if task_lr else None,
        pull=pull,
    )
    fast = distiller(teacher, student, regularization, order)
    slow_optimizer, slow_meta = adam(slow_student), torch.optim.SGD(slow_teacher.parameters(), lr=MU)
    slow_task = LiteralAdam(task_lr, EPS)
    for step in range(3):
        x = batch(seed=step)
        logs = fast.step(x)
        if order == "teacher_first":
            literal_meta_step([x], slow_teacher, slow_student, SETTINGS, LiteralSgd(LR), slow_meta)
        else:
            literal_distillation(x, slow_teacher, slow_student, SETTINGS, slow_optimizer)
            literal_teacher_step(slow_teacher, slow_student, SETTINGS, slow_meta)
        if task_lr:
            torch.testing.assert_close(logs["teacher_task_loss"], literal_task_step(slow_teacher, x, slow_task))
        with torch.no_grad():
            for theta, first in zip(slow_teacher.parameters(), start.parameters(), strict=True):
                theta.copy_((1 - pull) * theta + pull * first)
        if order == "teacher_first":
            literal_distillation(x, slow_teacher, slow_student, SETTINGS, slow_optimizer)
    for model, expected in ((teacher, slow_teacher), (student, slow_student)):
        for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)
    assert all(theta.grad is None for theta in teacher.parameters())


def test_a_whole_pull_leaves_the_teacher_at_its_start():
    teacher, student = models(torch.float32)
    before = weights(teacher)
    distiller(teacher, student, TeacherRegularization(teacher, pull=1.0)).step(batch())
    assert not changed(before, teacher)


def test_the_task_step_lowers_the_teachers_own_loss():
    teacher, student = models(torch.float32)
    fast = distiller(teacher, student, TeacherRegularization(teacher, task_step=GradientStep(adam(teacher, 1e-3))))
    losses = [fast.step(batch())["teacher_task_loss"].item() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_without_a_pull_no_copy_of_the_teacher_is_kept():
    teacher, _ = models(torch.float32)
    assert TeacherRegularization(teacher, task_step=GradientStep(adam(teacher)))._start == []


@pytest.mark.parametrize("pull", [-0.1, 1.5])
def test_a_pull_that_is_no_fraction_is_refused(pull):
    with pytest.raises(ValueError, match=f"pull = {pull}: expected a fraction between 0 and 1"):
        TeacherRegularization(bert(2), pull=pull)
