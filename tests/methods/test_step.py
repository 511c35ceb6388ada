"""One clipped step from a batch or its micro-batches, and the two methods that are made of it."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss, LossTerms, task_loss
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.step import GradientStep, accumulate_gradient, split_batch
from tests.helpers.models import batch, bert, changed, weights
from tests.oracles.reptile import clip, literal_loss

ALPHA, TEMPERATURE = 0.3, 4.0


def adamw(model):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)


def fine_tuner(student, **options):
    return FineTuner(student, student_optimizer=adamw(student), **options)


def knowledge_distiller(student, **options):
    loss = DistillationLoss(alpha=ALPHA, temperature=TEMPERATURE)
    teacher = options.pop("teacher", None) or bert(4, seed=1, dtype=next(student.parameters()).dtype)
    return KnowledgeDistiller(teacher, student, loss=loss, student_optimizer=adamw(student), **options)


METHODS = pytest.mark.parametrize("make", [fine_tuner, knowledge_distiller])


def literal_task_loss(student, batch):
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return -torch.log_softmax(logits, 1)[torch.arange(len(batch["labels"])), batch["labels"]].mean()


def dot_product(weight):
    """A loss whose gradient is the mean of the batch's `x`."""

    def compute_loss(batch):
        loss = (batch["x"] @ weight).mean()
        return LossTerms(loss, 2 * loss, 3 * loss)

    return compute_loss


def dot_product_step(weight, x, *, max_grad_norm=1.0, micro_batch_size=None):
    step = GradientStep(torch.optim.SGD([weight], lr=0.1), max_grad_norm, micro_batch_size)
    return step.take(dot_product(weight), {"x": x, "labels": torch.zeros(len(x))}, [weight])


@pytest.mark.parametrize(
    ("micro_batch_size", "rows", "shares"),
    [
        (1, [[0], [1], [2], [3], [4], [5], [6], [7]], [1 / 8] * 8),
        (3, [[0, 1, 2], [3, 4, 5], [6, 7]], [3 / 8, 3 / 8, 2 / 8]),
        (4, [[0, 1, 2, 3], [4, 5, 6, 7]], [1 / 2, 1 / 2]),
        (7, [[0, 1, 2, 3, 4, 5, 6], [7]], [7 / 8, 1 / 8]),
        (8, [[0, 1, 2, 3, 4, 5, 6, 7]], [1.0]),
        (100, [[0, 1, 2, 3, 4, 5, 6, 7]], [1.0]),
        (None, [[0, 1, 2, 3, 4, 5, 6, 7]], [1.0]),
    ],
)
def test_each_micro_batch_comes_with_its_share_of_the_rows(micro_batch_size, rows, shares):
    whole = {"input_ids": torch.arange(16).reshape(8, 2), "labels": torch.arange(8)}
    parts = list(split_batch(whole, micro_batch_size))
    assert [part["labels"].tolist() for part, _ in parts] == rows
    assert [part["input_ids"].tolist() for part, _ in parts] == [[[2 * i, 2 * i + 1] for i in part] for part in rows]
    assert [share for _, share in parts] == shares


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5, 7, 8, 100])
def test_micro_batches_give_the_gradient_of_the_big_batch_also_with_a_ragged_last_one(micro_batch_size):
    model = bert(2, dtype=torch.float64)
    literal_task_loss(model, batch()).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    def compute_loss(part):
        loss = literal_task_loss(model, part)
        return LossTerms(loss, loss, loss)

    terms = accumulate_gradient(compute_loss, batch(), micro_batch_size)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-14)
    torch.testing.assert_close(terms.total, literal_task_loss(model, batch()).detach(), rtol=0, atol=1e-14)


def test_unequal_micro_batches_are_weighted_by_their_rows():
    weight = torch.zeros(1, requires_grad=True)
    x = torch.tensor([[0.0], [0.0], [9.0]])
    accumulate_gradient(dot_product(weight), {"x": x, "labels": torch.zeros(3)}, 2)
    assert weight.grad.item() == pytest.approx(3.0)  # the mean of the means would be 4.5


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_gradients_are_added_to_those_already_there(micro_batch_size):
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.tensor([10.0])
    x = torch.tensor([[0.0], [0.0], [9.0]])
    accumulate_gradient(dot_product(weight), {"x": x, "labels": torch.zeros(3)}, micro_batch_size)
    assert weight.grad.item() == pytest.approx(13.0)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_each_loss_term_is_the_mean_over_the_batch_and_has_no_graph(micro_batch_size):
    weight = torch.ones(1, requires_grad=True)
    x = torch.tensor([[0.0], [0.0], [9.0]])
    terms = accumulate_gradient(dot_product(weight), {"x": x, "labels": torch.zeros(3)}, micro_batch_size)
    assert [term.item() for term in terms[:3]] == pytest.approx([3.0, 6.0, 9.0])
    assert not any(term.requires_grad for term in terms[:3])


def test_a_gradient_above_the_norm_is_clipped_to_it():
    weight = torch.zeros(2, requires_grad=True)
    logs = dot_product_step(weight, torch.tensor([[3.0, 4.0]]), max_grad_norm=1.0)
    assert logs["grad_norm"].item() == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([-0.06, -0.08], rel=1e-4)  # lr 0.1 * (3, 4) / 5


def test_a_gradient_below_the_norm_stays_as_it_is():
    weight = torch.zeros(2, requires_grad=True)
    logs = dot_product_step(weight, torch.tensor([[3.0, 4.0]]), max_grad_norm=6.0)
    assert logs["grad_norm"].item() == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([-0.3, -0.4])


def test_the_sum_of_the_micro_batches_is_clipped_and_stepped_once():
    weight = torch.zeros(2, requires_grad=True)
    x = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 3.0]])  # mean (3, 4)
    logs = dot_product_step(weight, x, max_grad_norm=1.0, micro_batch_size=2)
    assert logs["grad_norm"].item() == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([-0.06, -0.08], rel=1e-4)


def test_a_stale_gradient_is_not_used():
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([100.0, 100.0])
    dot_product_step(weight, torch.tensor([[3.0, 4.0]]), max_grad_norm=6.0)
    assert weight.tolist() == pytest.approx([-0.3, -0.4])


def test_fine_tuning_equals_the_literal_loop():
    student = bert(2, seed=2, dtype=torch.float64)
    expected = copy.deepcopy(student)
    before = weights(student)
    method, optimizer = fine_tuner(student, max_grad_norm=0.5), adamw(expected)
    for seed in range(3):
        logs = method.step(batch(seed=seed))
        optimizer.zero_grad()
        loss = literal_task_loss(expected, batch(seed=seed))
        loss.backward()
        clip([parameter.grad for parameter in expected.parameters()], 0.5)
        optimizer.step()
        torch.testing.assert_close(logs["loss"], loss.detach())
    assert_equal_weights(student, expected)
    assert (student.classifier.weight - before["classifier.weight"]).abs().mean() > 1e-3


def test_knowledge_distillation_equals_the_literal_loop():
    teacher, student = bert(4, seed=1, dtype=torch.float64).eval(), bert(2, seed=2, dtype=torch.float64)
    expected = copy.deepcopy(student)
    method = knowledge_distiller(student, teacher=copy.deepcopy(teacher), max_grad_norm=0.5)
    optimizer = adamw(expected)
    for seed in range(3):
        logs = method.step(batch(seed=seed))
        optimizer.zero_grad()
        loss = literal_loss(expected, teacher, batch(seed=seed), ALPHA, TEMPERATURE)
        loss.backward()
        clip([parameter.grad for parameter in expected.parameters()], 0.5)
        optimizer.step()
        torch.testing.assert_close(logs["loss"], loss.detach())
    assert_equal_weights(student, expected)


def assert_equal_weights(model, expected):
    for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@METHODS
def test_a_method_learns_the_same_from_micro_batches(make, micro_batch_size):
    whole, parts = bert(2, seed=2, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
    by_batch, by_parts = make(whole), make(parts, micro_batch_size=micro_batch_size)
    for seed in range(3):
        logs, logs_of_parts = by_batch.step(batch(seed=seed)), by_parts.step(batch(seed=seed))
        for name, value in logs.items():
            torch.testing.assert_close(logs_of_parts[name], value, rtol=0, atol=1e-7)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@METHODS
def test_the_logs_are_scalars_without_a_graph(make):
    logs = make(bert(2)).step(batch())
    assert set(logs) == {"loss", "task_loss", "distillation_loss", "grad_norm"}
    assert all(value.shape == () and not value.requires_grad for value in logs.values())


def test_fine_tuning_logs_the_task_loss_as_its_loss_and_no_distillation():
    student = bert(2)
    expected = literal_task_loss(student, batch()).detach()
    logs = fine_tuner(student).step(batch())
    torch.testing.assert_close(logs["loss"], expected)
    torch.testing.assert_close(logs["task_loss"], expected)
    assert logs["distillation_loss"] == 0


def test_the_loss_that_kd_logs_is_made_of_the_two_terms_it_logs():
    logs = knowledge_distiller(bert(2)).step(batch())
    torch.testing.assert_close(logs["loss"], (1 - ALPHA) * logs["task_loss"] + ALPHA * logs["distillation_loss"])


@METHODS
def test_the_student_is_back_in_train_mode_after_an_evaluation(make):
    student = bert(2)
    method = make(student)
    method.student.eval()
    method.step(batch())
    assert student.training


def test_kd_never_changes_the_teacher():
    teacher = bert(4, seed=1, dropout=0.5)
    before = weights(teacher)
    method = knowledge_distiller(bert(2), teacher=teacher)
    for seed in range(3):
        method.step(batch(seed=seed))
    assert not changed(before, teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_kd_learns_from_a_teacher_without_dropout():
    teacher, student = bert(4, seed=1, dropout=0.5), bert(2, seed=2)
    expected = literal_loss(student, copy.deepcopy(teacher).eval(), batch(), ALPHA, TEMPERATURE).detach()
    method = knowledge_distiller(student, teacher=teacher)
    teacher.train()
    torch.testing.assert_close(method.step(batch())["loss"], expected)


def test_two_fine_tuners_in_one_process_do_not_touch_each_other():
    alone, student, other = bert(2, seed=2), bert(2, seed=2), bert(2, seed=3)
    fine_tuner(alone).step(batch())
    method, another = fine_tuner(student), fine_tuner(other)
    another.step(batch(seed=5))
    method.step(batch())
    assert not changed(weights(alone), student)


@METHODS
def test_a_regression_is_learnt_too(make):
    student = bert(2, num_labels=1)
    options = {"teacher": bert(4, num_labels=1, seed=1)} if make is knowledge_distiller else {}
    method = make(student, **options)
    first = task_loss(method.student(batch(num_labels=1)), batch(num_labels=1)["labels"]).item()
    for _ in range(20):
        logs = method.step(batch(num_labels=1))
    assert logs["task_loss"] < first / 2
