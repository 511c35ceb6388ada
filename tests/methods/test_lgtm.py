"""LGTM's step: against a literal one, its influence against finite differences and MetaDistil's second order."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.lgtm import literal_lgtm_step

SETTINGS = {
    "alpha": 0.3,
    "beta": 0.4,
    "temperature": 4.0,
    "soft": "kl",
    "influence": 2.0,
    "radius": 1e-2,
    "assumed_optimizer": "sgd",
    "assumed_lr": 0.1,
    "eps": 1e-4,
    "max_grad_norm": 1.0,
}
QUIZ = batch(5, seed=50)


def adamw(model, lr=1e-2):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, eps=1e-4)


def distiller(teacher, student, *, lr=1e-2, mu=1e-2, hidden_terms=(), teacher_optimizer=None, **changes):
    settings = {**SETTINGS, **changes}
    loss = {name: settings.pop(name) for name in ("alpha", "temperature", "soft", "regression") if name in settings}
    return InfluenceDistiller(
        teacher,
        student,
        loss=DistillationLoss(**loss, hidden_terms=hidden_terms),
        student_optimizer=adamw(student, lr),
        teacher_optimizer=teacher_optimizer or adamw(teacher, mu),
        assumed_eps=settings.pop("eps"),
        **settings,
    )


def pair(num_labels=3, **options):
    options = {"num_labels": num_labels, "dtype": torch.float64, **options}
    return bert(3, seed=1, **options), bert(2, seed=2, **options)


def assert_equal(models, expected, *, atol):
    for model, other in zip(models, expected, strict=True):
        for (name, value), wanted in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"soft": "mse", "beta": 0.0, "influence": 50.0},
        {"assumed_optimizer": "adamw", "assumed_lr": 0.02, "eps": 1e-2},
        {"max_grad_norm": 0.01, "radius": 1.0},
    ],
)
@pytest.mark.parametrize("num_labels", [3, 1])
def test_three_steps_equal_the_literal_method(changes, num_labels):
    models, slow = pair(num_labels), pair(num_labels)
    method, optimizers = distiller(*models, **changes), (adamw(slow[1]), adamw(slow[0]))
    for seed in range(3):
        lesson, quiz = (batch(3, seed=s, num_labels=num_labels) for s in (seed, seed + 50))
        method.step(lesson, quiz)
        literal_lgtm_step(lesson, quiz, *slow, {**SETTINGS, **changes}, *optimizers)
    assert_equal(models, slow, atol=1e-9)


def influence_of(models, hidden_terms=(), **changes):
    """The influence's gradient in the teacher's weights: what c = 1 adds to a plain step of size 1, which c = 0 has."""
    ends = []
    for influence in (1.0, 0.0):
        teacher, student = pair()
        teacher.load_state_dict(models[0].state_dict())
        student.load_state_dict(models[1].state_dict())
        method = distiller(
            teacher,
            student,
            influence=influence,
            teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=1.0),
            max_grad_norm=1e9,
            hidden_terms=hidden_terms,
            **changes,
        )
        method.step(batch(), QUIZ)
        ends.append(weights(teacher))
    return {name: ends[0][name] - ends[1][name] for name in ends[0]}


def product(models, v, hidden_terms=()):
    """v times the gradient of L in the student's weights, with the teacher as it is."""
    teacher, student = models
    options = {name: SETTINGS[name] for name in ("alpha", "temperature")}
    loss = DistillationLoss(**options, hidden_terms=hidden_terms)
    kd = KnowledgeDistiller(teacher, student, loss=loss, student_optimizer=adamw(student))
    gradients = torch.autograd.grad(kd._compute_loss(batch()).total, list(student.parameters()), allow_unused=True)
    return sum((g * along).sum() for g, along in zip(gradients, v, strict=True) if g is not None).item()


@pytest.mark.parametrize("hidden_terms", [(), (HiddenLoss(0.3, ((1,), (2,))),)], ids=["logits", "hidden states"])
def test_the_influence_equals_finite_differences_in_the_teachers_weights(hidden_terms):
    """Of v times the gradient of L, along random directions, for the student's quiz gradient v held fixed."""
    models = pair()
    influence = influence_of(models, hidden_terms, radius=1e-4)
    taker = distiller(*pair(), hidden_terms=hidden_terms)
    taker.assume_step(batch())
    _, v = taker.take_quiz(QUIZ)
    start = {name: theta.detach().clone() for name, theta in models[0].named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        along = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in start.items()}
        values = {}
        for multiple in (-2, -1, 1, 2):
            with torch.no_grad():
                for name, theta in models[0].named_parameters():
                    theta.copy_(start[name] + multiple * 3e-5 * along[name])
            values[multiple] = product(models, v, hidden_terms)
        difference = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * 3e-5)
        gradient = sum((influence[name] * along[name]).sum() for name in start).item()
        assert abs(difference) > 1e-4  # nothing is proved where nothing changes
        assert gradient == pytest.approx(difference, rel=1e-5)


def test_the_influence_is_metadistils_second_order_gradient_over_its_assumed_rate():
    models = pair()
    influence = influence_of(models, radius=1e-4)
    teacher, student = models
    meta = MetaDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=adamw(student),
        teacher_optimizer=adamw(teacher),
        assumed_lr=SETTINGS["assumed_lr"],
    )
    theta_s_prime, _ = meta.assume_step(batch())
    names, theta_t = zip(*teacher.named_parameters(), strict=True)
    second_order = torch.autograd.grad(meta.take_quiz(theta_s_prime, QUIZ), theta_t)
    largest = max(gradient.abs().max() for gradient in second_order)
    for name, gradient in zip(names, second_order, strict=True):
        wanted = -gradient / SETTINGS["assumed_lr"]
        torch.testing.assert_close(influence[name], wanted, rtol=0, atol=1e-5 * largest.item() / 0.1, msg=name)
    assert largest > 1e-6


def test_without_influence_the_teacher_takes_prokts_step_and_the_student_follows_it():
    models, others = pair(), pair()
    method = distiller(*models, influence=0.0)
    prokt = ProKTDistiller(
        *others,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        beta=SETTINGS["beta"],
        student_optimizer=adamw(others[1]),
        teacher_optimizer=adamw(others[0]),
        order="teacher_first",
    )
    for seed in range(3):
        logs = method.step(batch(seed=seed), QUIZ)
        assert logs["influence_ratio"] == 0
        torch.testing.assert_close(logs["auxiliary_loss"], prokt.step(batch(seed=seed))["teacher_loss"])
    assert_equal(models, others, atol=1e-12)


def test_the_ratio_is_in_proportion_to_the_influence():
    ratios = [distiller(*pair(), influence=c).step(batch(), QUIZ)["influence_ratio"] for c in (0.5, 1.0)]
    assert ratios[0] > 0
    torch.testing.assert_close(2 * ratios[0], ratios[1])


@pytest.mark.parametrize("rows", [1, 3])
def test_micro_batches_leave_the_batchs_steps(rows):
    whole, parts = pair(), pair()
    methods = distiller(*whole), distiller(*parts, micro_batch_size=rows)
    for seed in range(3):
        logs = [method.step(batch(seed=seed), QUIZ) for method in methods]
    for name, value in logs[0].items():
        torch.testing.assert_close(logs[1][name], value, rtol=0, atol=1e-9, msg=name)
    assert_equal(whole, parts, atol=1e-9)


@torch.no_grad()
def make_sure_of_class_0(model):
    model.classifier.weight.zero_()
    model.classifier.bias.copy_(torch.tensor([1e5, 0.0]))


def of_class_0(given):
    return {**given, "labels": torch.zeros_like(given["labels"])}


def test_a_quiz_that_leaves_nothing_to_learn_has_no_influence():
    """Its gradient v is 0 bit for bit: one class, of which the student is sure, so the step along v has no length."""
    models, expected = (pair(num_labels=2) for _ in range(2))
    for _, student in (models, expected):
        make_sure_of_class_0(student)
    quiz = of_class_0(QUIZ)
    lesson = batch(num_labels=2)
    logs = distiller(*models).step(lesson, quiz)
    assert logs["quiz_loss"] == 0
    assert logs["influence_ratio"] == 0
    assert all(torch.isfinite(theta).all() for model in models for theta in model.parameters())
    distiller(*expected, influence=0.0).step(lesson, quiz)
    assert_equal(models, expected, atol=0)


def test_the_ratio_is_0_where_the_teacher_has_nothing_to_learn():
    """Neither part has a gradient at its logits, bit for bit: it is sure of the batch's one class."""
    teacher, student = pair(num_labels=2)
    make_sure_of_class_0(teacher)
    logs = distiller(teacher, student, beta=0.0).step(of_class_0(batch()), batch(5, num_labels=2, seed=50))
    assert logs["quiz_loss"] > 0
    assert logs["influence_ratio"] == 0


def test_steps_1_to_3_leave_the_student_bit_for_bit_as_it_was():
    teacher, student = pair(dropout=0.5)
    before = weights(student)
    method = distiller(teacher, student, lr=0.0)
    method.step(batch(), QUIZ)
    assert not changed(before, student)
    assert student.training


def test_a_step_that_fails_leaves_the_student_as_it_was():
    teacher, student = pair()
    before = weights(student)
    unlabelled = {name: tensor for name, tensor in QUIZ.items() if name != "labels"}
    with pytest.raises(ValueError, match="the batch has no labels"):
        distiller(teacher, student).step(batch(), unlabelled)
    assert not changed(before, student)


def test_the_student_never_takes_a_step_on_the_quiz():
    """With a teacher that stays, another quiz changes nothing for the student."""
    students = []
    for seed in (9, 10):
        teacher, student = pair()
        distiller(teacher, student, mu=0.0).step(batch(), batch(seed=seed))
        students.append(student)
    assert not changed(weights(students[0]), students[1])


@pytest.mark.parametrize("every", [1, 3])
def test_the_teacher_moves_in_the_first_step_and_every_so_many_after_it(every):
    teacher, student = pair()
    method = distiller(teacher, student, every=every)
    moved, logs = [], []
    for seed in range(4):
        before = weights(teacher)
        logs.append(method.step(batch(seed=seed), QUIZ))
        moved.append(bool(changed(before, teacher)))
    assert moved == [step % every == 0 for step in range(4)]
    assert len({frozenset(log) for log in logs}) == 1
    assert [bool(log["quiz_loss"]) for log in logs] == moved


def test_a_step_goes_through_each_model_as_often_as_its_layer_units_say():
    method = distiller(*pair())
    calls = {"teacher": 0, "student": 0}
    for name in calls:
        getattr(method, name).model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    method.step(batch(), QUIZ)
    assert calls == {"teacher": 2, "student": 5}  # assumed, quiz, there, back, real


def test_the_logs_are_scalars_without_a_graph_and_the_teacher_keeps_no_gradient():
    models = pair()
    logs = distiller(*models).step(batch(), QUIZ)
    of_student = {"loss", "task_loss", "distillation_loss", "grad_norm"}
    of_teacher = {"assumed_loss", "quiz_loss", "auxiliary_loss", "teacher_grad_norm", "influence_ratio"}
    assert set(logs) == of_student | of_teacher
    assert all(value.shape == () and not value.requires_grad for value in logs.values())
    assert all(parameter.grad is None for parameter in models[0].parameters())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet", "albert"])
def test_every_architecture_and_unequal_widths_work(kind):
    teacher, student = classifier(kind, 3, width=24, seed=1), classifier(kind, 2, seed=2)
    before = weights(teacher), weights(student)
    distiller(teacher, student).step(batch(), QUIZ)
    for model, old in ((teacher, before[0]), (student, before[1])):
        assert any("layer" in name for name in changed(old, model))


def test_frozen_weights_of_either_model_stay():
    models = pair()
    for model in models:
        model.bert.embeddings.requires_grad_(False)
    before = [weights(model) for model in models]
    distiller(*models).step(batch(), QUIZ)
    for model, old in zip(models, before, strict=True):
        moved = changed(old, model)
        assert moved
        assert not any(".embeddings." in name for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assumed_optimizer": "lion"}, "assumed_optimizer = 'lion': expected 'sgd' or 'adamw'"),
        ({"every": 0}, "every = 0, radius = 0.01: expected at least 1"),
        ({"radius": 0.0}, r"every = 1, radius = 0.0: expected at least 1, and a number above 0"),
        ({"alpha": 0.0}, "alpha = 0 leaves the teacher out of the loss"),
        ({"regression": "none", "num_labels": 1}, "regression = 'none' leaves the teacher out of the loss"),
        ({"beta": -0.1}, "beta = -0.1: expected a weight from 0 to 1"),
    ],
)
def test_what_is_no_option_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        distiller(*pair(num_labels=changes.pop("num_labels", 3)), **changes)


def test_a_loss_of_numbers_with_no_distillation_term_is_taken_where_something_else_depends_on_the_teacher():
    distiller(*pair(num_labels=3), regression="none")
    distiller(*pair(num_labels=1), regression="none", hidden_terms=[HiddenLoss(0.3, ((1,), (2,)))])
    teacher, student = pair(num_labels=1)
    teacher.config.problem_type = "multi_label_classification"
    distiller(teacher, student, regression="none")


def test_a_batch_without_a_quiz_is_refused():
    with pytest.raises(ValueError, match=r"takes a quiz batch as second argument, .*: call step\(batch, quiz_batch\)"):
        distiller(*pair()).step(batch())
