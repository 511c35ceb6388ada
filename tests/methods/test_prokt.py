"""ProKT and co-training: both models' steps against literal ones, and what the two owe to Reptile and to kd."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import TeacherRegularization
from reptile_distil.methods.step import GradientStep
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.prokt import literal_prokt_step

SETTINGS = {"alpha": 0.3, "beta": 0.4, "temperature": 4.0, "soft": "kl", "order": "together", "max_grad_norm": 1.0}
ORDERS = pytest.mark.parametrize("order", ["together", "teacher_first"])


def adamw(model, lr=1e-2):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, eps=1e-4)


def distiller(teacher, student, *, lr=1e-2, mu=1e-2, micro_batch_size=None, hidden_terms=(), **changes):
    """ProKT; co-training where beta is None."""
    settings = {**SETTINGS, **changes}
    names = ("alpha", "temperature", "soft")
    options = {
        "loss": DistillationLoss(**{name: settings[name] for name in names}, hidden_terms=hidden_terms),
        "student_optimizer": adamw(student, lr),
        "teacher_optimizer": adamw(teacher, mu),
        "order": settings["order"],
        "max_grad_norm": settings["max_grad_norm"],
        "micro_batch_size": micro_batch_size,
    }
    if settings["beta"] is None:
        return CoTrainer(teacher, student, **options)
    return ProKTDistiller(teacher, student, beta=settings["beta"], **options)


def pair(num_labels=3, **options):
    options = {"num_labels": num_labels, "dtype": torch.float64, **options}
    return bert(3, seed=1, **options), bert(2, seed=2, **options)


def assert_equal(models, expected, *, atol):
    for model, other in zip(models, expected, strict=True):
        for (name, value), wanted in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=atol, msg=name)


@ORDERS
@pytest.mark.parametrize("changes", [{}, {"soft": "mse"}, {"beta": 1.0}, {"beta": None}, {"max_grad_norm": 0.01}])
@pytest.mark.parametrize("num_labels", [3, 1])
def test_three_steps_equal_the_literal_method(changes, order, num_labels):
    models, slow = pair(num_labels), pair(num_labels)
    method = distiller(*models, order=order, **changes)
    settings = {**SETTINGS, "order": order, **changes, "beta": changes.get("beta", SETTINGS["beta"]) or 0.0}
    optimizers = adamw(slow[1]), adamw(slow[0])
    for seed in range(3):
        lesson = batch(4, seed=seed, num_labels=num_labels)
        method.step(lesson)
        literal_prokt_step(lesson, *slow, settings, *optimizers)
    assert_equal(models, slow, atol=1e-9)
    assert (models[0].classifier.weight - pair(num_labels)[0].classifier.weight).abs().max() > 1e-3


@ORDERS
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_micro_batches_leave_the_batchs_steps(order, rows):
    whole, parts = pair(), pair()
    methods = distiller(*whole, order=order), distiller(*parts, order=order, micro_batch_size=rows)
    for seed in range(3):
        logs = [method.step(batch(seed=seed)) for method in methods]
    for name, value in logs[0].items():
        torch.testing.assert_close(logs[1][name], value, rtol=0, atol=1e-12)
    assert_equal(whole, parts, atol=1e-9)


def test_the_masks_of_both_passes_over_micro_batches_are_the_same():
    """With teacher_first a split batch goes through the student twice: the second pass draws the first one's masks."""
    teacher, student = pair(dropout=0.5)
    method = distiller(teacher, student, order="teacher_first", mu=0.0, micro_batch_size=3)
    seen = []
    outputs = method.student.outputs
    method.student.outputs = lambda *a, **b: seen.append(outputs(*a, **b)) or seen[-1]
    method.step(batch())
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first.logits, second.logits, rtol=0, atol=0)
    assert not seen[0].logits.requires_grad


def test_cotraining_is_reptile_that_moves_its_teacher_by_the_task_step_alone():
    """The control: mu = 0 with task_lr, the student first."""
    models, controls = pair(), pair()
    method = distiller(*models, beta=None)
    step = GradientStep(adamw(controls[0]), max_grad_norm=1.0)
    reptile = ReptileDistiller(
        *controls,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=adamw(controls[1]),
        teacher_optimizer=torch.optim.SGD(controls[0].parameters(), lr=0.0),
        layer_map=[0, 2],
        update="interpolate",
        order="student_first",
        regularization=TeacherRegularization(controls[0], task_step=step),
    )
    for seed in range(5):
        logs, control = method.step(batch(seed=seed)), reptile.step(batch(seed=seed))
        torch.testing.assert_close(logs["teacher_loss"], control["teacher_task_loss"], rtol=0, atol=1e-12)
    assert_equal(models, controls, atol=1e-12)


@ORDERS
def test_a_teacher_that_does_not_move_leaves_kd(order):
    models, frozen = pair(), pair()
    method = distiller(*models, order=order, mu=0.0)
    loss = DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"])
    kd = KnowledgeDistiller(*frozen, loss=loss, student_optimizer=adamw(frozen[1]))
    for seed in range(3):
        logs, of_kd = method.step(batch(seed=seed)), kd.step(batch(seed=seed))
        for name, value in of_kd.items():
            torch.testing.assert_close(logs[name], value, rtol=0, atol=1e-12)
    assert_equal(models, frozen, atol=1e-12)


@ORDERS
def test_a_step_asks_each_model_as_often_as_it_says(order):
    """Once, but for the teacher that has just moved."""
    method = distiller(*pair(), order=order)
    calls = {"teacher": 0, "student": 0}
    for name in calls:
        getattr(method, name).model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    method.step(batch())
    assert calls == {"teacher": 1 if order == "together" else 2, "student": 1}


@ORDERS
def test_the_teacher_has_no_dropout_and_the_student_has(order):
    teacher, student = bert(3, seed=1, dropout=0.5), bert(2, seed=2, dropout=0.5)
    teacher.train()
    student.eval()
    method = distiller(teacher, student, order=order, beta=None, lr=0.0, mu=0.0)
    logs = [method.step(batch()) for _ in range(2)]
    assert logs[0]["teacher_loss"] == logs[1]["teacher_loss"]
    assert logs[0]["loss"] != logs[1]["loss"]


@ORDERS
def test_terms_on_hidden_states_are_the_students_alone(order):
    """The teacher's step is the same with and without them; the student's is not."""
    plain, hidden = pair(), pair()
    distiller(*plain, order=order).step(batch())
    logs = distiller(*hidden, order=order, hidden_terms=[HiddenLoss(1.0, ((0,), (2,)))]).step(batch())
    assert logs["hidden_loss"] > 0
    torch.testing.assert_close(
        logs["loss"], 0.7 * logs["task_loss"] + 0.3 * logs["distillation_loss"] + logs["hidden_loss"]
    )
    assert_equal(plain[:1], hidden[:1], atol=1e-12)
    assert changed(weights(plain[1]), hidden[1])


@ORDERS
def test_the_logs_are_scalars_without_a_graph_and_the_teacher_keeps_no_gradient(order):
    models = pair()
    logs = distiller(*models, order=order).step(batch())
    names = {"loss", "task_loss", "distillation_loss", "grad_norm", "teacher_loss", "teacher_grad_norm"}
    assert set(logs) == names
    assert all(value.shape == () and not value.requires_grad for value in logs.values())
    assert all(parameter.grad is None for parameter in models[0].parameters())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet", "albert"])
def test_every_architecture_and_unequal_widths_work(kind):
    teacher, student = classifier(kind, 3, width=24, seed=1), classifier(kind, 2, seed=2)
    before = weights(teacher), weights(student)
    distiller(teacher, student).step(batch())
    for model, old in ((teacher, before[0]), (student, before[1])):
        assert any("layer" in name for name in changed(old, model))


def test_frozen_weights_of_either_model_stay():
    models = pair()
    for model in models:
        model.bert.embeddings.requires_grad_(False)
    before = [weights(model) for model in models]
    distiller(*models).step(batch())
    for model, old in zip(models, before, strict=True):
        moved = changed(old, model)
        assert moved
        assert not any(".embeddings." in name for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "student_first"}, "order = 'student_first': expected one of together, teacher_first"),
        ({"beta": 1.5}, "beta = 1.5: expected a weight from 0 to 1"),
    ],
)
def test_what_is_no_option_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        distiller(*pair(), **changes)
