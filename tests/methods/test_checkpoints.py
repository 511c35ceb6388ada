"""Distillation from a teacher's epochs: each in its turn, and nothing else than kd."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.checkpoints import CheckpointDistiller, epoch_at
from reptile_distil.methods.kd import KnowledgeDistiller
from tests.helpers.models import batch, bert, changed, weights
from tests.oracles.checkpoints import literal_curriculum

SETTINGS = {"alpha": 0.3, "temperature": 4.0, "soft": "kl", "max_grad_norm": 1.0}


def adamw(model):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)


def distiller(teacher, student, epochs, *, optimizer=None, num_steps=8, **options):
    return CheckpointDistiller(
        teacher,
        student,
        epochs=[epoch.state_dict for epoch in epochs],
        num_steps=num_steps,
        loss=DistillationLoss(alpha=0.3, temperature=4.0),
        student_optimizer=optimizer or adamw(student),
        **options,
    )


def three_epochs(num_labels=3):
    return [bert(3, seed=seed, num_labels=num_labels, dtype=torch.float64) for seed in (5, 6, 7)]


def students(number=2, num_labels=3):
    return [bert(2, seed=2, num_labels=num_labels, dtype=torch.float64) for _ in range(number)]


def assert_equal(model, expected, *, atol=1e-9):
    for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(("num_steps", "turns"), [(8, [3, 3, 2]), (3, [1, 1, 6]), (2, [1, 1, 6])])
@pytest.mark.parametrize("num_labels", [3, 1])
def test_eight_steps_equal_the_literal_curriculum(num_steps, turns, num_labels):
    epochs, (student, slow) = three_epochs(num_labels), students(num_labels=num_labels)
    teacher = bert(3, seed=1, num_labels=num_labels, dtype=torch.float64)
    method = distiller(teacher, student, epochs, num_steps=num_steps)
    batches = [batch(4, seed=seed, num_labels=num_labels) for seed in range(8)]
    taught = [method.step(given)["teacher_epoch"].item() for given in batches]
    literal_curriculum(batches, epochs, slow, {**SETTINGS, "turns": turns}, adamw(slow))
    assert taught == [1] * turns[0] + [2] * turns[1] + [3] * turns[2]
    assert_equal(student, slow)
    assert not changed(weights(epochs[2]), teacher)


@pytest.mark.parametrize("epochs", [0, 1])
def test_fewer_than_two_epochs_are_kd(epochs):
    teacher = bert(3, seed=5, dtype=torch.float64)
    student, expected = students()
    method = distiller(teacher, student, [teacher] * epochs)
    loss = DistillationLoss(alpha=0.3, temperature=4.0)
    kd = KnowledgeDistiller(teacher, expected, loss=loss, student_optimizer=adamw(expected))
    for seed in range(3):
        assert method.step(batch(seed=seed))["loss"] == kd.step(batch(seed=seed))["loss"]
    assert not changed(weights(expected), student)


def test_each_epoch_is_read_once_when_its_turn_comes():
    epochs, (student,) = three_epochs(), students(1)
    method = distiller(bert(3, dtype=torch.float64), student, epochs, num_steps=6)
    read = []
    method.epochs = [lambda turn=turn: read.append(turn) or epochs[turn].state_dict() for turn in range(3)]
    seen = [(method.step(batch(seed=seed)), list(read))[1] for seed in range(8)]
    assert seen == [[0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


def test_a_run_that_goes_on_goes_on_with_the_epoch_whose_turn_it_is():
    epochs, (whole, parts) = three_epochs(), students()
    method = distiller(bert(3, dtype=torch.float64), whole, epochs)
    optimizer = adamw(parts)
    first = distiller(bert(3, dtype=torch.float64), parts, epochs, optimizer=optimizer)
    for seed in range(4):
        method.step(batch(seed=seed))
        first.step(batch(seed=seed))
    state = optimizer.state_dict()
    second_optimizer = adamw(parts)
    second = distiller(bert(3, dtype=torch.float64), parts, epochs, optimizer=second_optimizer)
    second_optimizer.load_state_dict(state)
    for seed in range(4, 8):
        assert second.step(batch(seed=seed))["teacher_epoch"] == method.step(batch(seed=seed))["teacher_epoch"]
    assert not changed(weights(whole), parts)


def test_micro_batches_leave_the_batchs_steps():
    epochs, (whole, parts) = three_epochs(), students()
    methods = [
        distiller(bert(3, dtype=torch.float64), student, epochs, micro_batch_size=rows)
        for student, rows in ((whole, None), (parts, 3))
    ]
    for seed in range(8):
        for method in methods:
            method.step(batch(seed=seed))
    assert_equal(whole, parts)


def test_epochs_teach_equally_long_and_the_last_one_stays():
    assert [epoch_at(step, num_epochs=2, num_steps=5) for step in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    assert [epoch_at(step, num_epochs=5, num_steps=2) for step in range(4)] == [0, 2, 4, 4]
    assert epoch_at(3, num_epochs=0, num_steps=2) == 0


def test_a_curriculum_without_steps_is_refused():
    teacher, (student,) = bert(3, dtype=torch.float64), students(1)
    with pytest.raises(ValueError, match="num_steps = 0: expected at least 1"):
        distiller(teacher, student, [], num_steps=0)
