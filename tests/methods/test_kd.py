"""Distillation with extra labelled rows: what a quiz is worth as plain labels."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.kd import KnowledgeDistiller
from tests.helpers.models import batch, bert, changed, weights
from tests.oracles.prokt import literal_logits, literal_loss, literal_step, literal_task

EXTRA = [batch(3, seed=70 + seed) for seed in range(3)]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)


def distiller(student, *, extra_rows=0.6, **options):
    teacher, loss = bert(3, seed=1, dtype=torch.float64), DistillationLoss(alpha=0.3, temperature=4.0)
    options = {"loss": loss, "student_optimizer": adamw(student), "extra_rows": extra_rows, **options}
    return KnowledgeDistiller(teacher, student, **options)


def two_students():
    return [bert(2, seed=2, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.01])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_three_steps_equal_the_literal_sum_of_both_losses(micro_batch_size, max_grad_norm):
    student, slow = two_students()
    method = distiller(student, micro_batch_size=micro_batch_size, max_grad_norm=max_grad_norm)
    optimizer, settings = adamw(slow), {"temperature": 4.0, "soft": "kl"}
    for seed, extra in enumerate(EXTRA):
        logs = method.step(batch(4, seed=seed), extra)
        task = sum(literal_task(literal_logits(slow, extra, row), extra["labels"][row]) for row in range(3)) / 3
        loss = literal_loss(slow, bert(3, seed=1, dtype=torch.float64), batch(4, seed=seed), 0.3, settings) + 0.6 * task
        torch.testing.assert_close(logs["extra_rows_loss"], task.detach())
        torch.testing.assert_close(logs["loss"], loss.detach())
        literal_step(slow, loss, optimizer, max_grad_norm)
    for (name, value), wanted in zip(student.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-9, msg=name)


def test_the_teacher_is_not_asked_about_the_extra_rows():
    student, _ = two_students()
    method = distiller(student)
    rows = []
    method.teacher.model.register_forward_hook(lambda *call: rows.append(len(call[2].logits)))
    method.step(batch(4), EXTRA[0])
    assert rows == [4]


def test_without_a_weight_there_is_no_second_batch_and_with_one_there_must_be():
    student, other = two_students()
    plain = distiller(student, extra_rows=0.0)
    plain.step(batch())
    assert changed(weights(other), student)
    for method, batches in ((plain, (batch(), EXTRA[0])), (distiller(other), (batch(),))):
        with pytest.raises(ValueError, match="a second batch comes with a weight above 0 alone"):
            method.step(*batches)
