"""MetaDistil's step: its second-order gradient against finite differences, the step against a literal one."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss, PatientLoss
from reptile_distil.methods.metadistil import MetaDistiller
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.metadistil import literal_metadistil_step

SETTINGS = {
    "alpha": 0.3,
    "temperature": 4.0,
    "soft": "kl",
    "assumed_optimizer": "sgd",
    "assumed_lr": 0.5,
    "eps": 1e-4,
    "max_grad_norm": 1.0,
}


def adamw(model, lr):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, eps=1e-4)


def meta_distiller(teacher, student, *, lr=1e-2, mu=1e-2, hidden_terms=(), **changes):
    settings = {**SETTINGS, **changes}
    return MetaDistiller(
        teacher,
        student,
        loss=DistillationLoss(
            alpha=settings["alpha"],
            temperature=settings["temperature"],
            soft=settings["soft"],
            regression=settings.get("regression", "mse"),
            hidden_terms=hidden_terms,
        ),
        student_optimizer=adamw(student, lr),
        teacher_optimizer=adamw(teacher, mu),
        assumed_optimizer=settings["assumed_optimizer"],
        assumed_lr=settings["assumed_lr"],
        assumed_eps=settings["eps"],
        max_grad_norm=settings["max_grad_norm"],
    )


def double_pair(num_labels=3, **options):
    options = {"num_labels": num_labels, "dtype": torch.float64, **options}
    return bert(3, seed=1, **options), bert(2, seed=2, **options)


@pytest.fixture
def pair():
    return bert(3, seed=1), bert(2, seed=2)


def quiz_loss_of(distiller, num_labels=3):
    theta_s_prime, _ = distiller.assume_step(batch(num_labels=num_labels))
    return distiller.take_quiz(theta_s_prime, batch(seed=9, num_labels=num_labels))


def assert_gradient_equals_finite_differences(distiller, teacher, num_labels=3, step=3e-5):
    """Along random directions through all teacher weights, to 1e-6 relative; a five-point difference."""
    parameters = list(teacher.parameters())
    gradients = torch.autograd.grad(quiz_loss_of(distiller, num_labels), parameters)
    start = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        losses = {}
        for multiple in (-2, -1, 1, 2):
            with torch.no_grad():
                for parameter, origin, along in zip(parameters, start, direction, strict=True):
                    parameter.copy_(origin + multiple * step * along)
            losses[multiple] = quiz_loss_of(distiller, num_labels).item()
        difference = (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * step)
        gradient = sum((g * along).sum() for g, along in zip(gradients, direction, strict=True)).item()
        assert abs(difference) > 1e-3  # nothing is proved where nothing changes
        assert gradient == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(("soft", "num_labels"), [("kl", 3), ("mse", 3), ("kl", 1)])
def test_the_second_order_gradient_equals_finite_differences_of_the_quiz_loss(soft, num_labels):
    teacher, student = double_pair(num_labels)
    distiller = meta_distiller(teacher, student, soft=soft, assumed_lr=5.0 if soft == "mse" else 0.5)
    assert_gradient_equals_finite_differences(distiller, teacher, num_labels)


def test_the_gradient_through_an_assumed_adamw_step_equals_finite_differences_too():
    teacher, student = double_pair()
    distiller = meta_distiller(teacher, student, assumed_optimizer="adamw", assumed_lr=0.02, eps=1e-2)
    assert_gradient_equals_finite_differences(distiller, teacher)


def test_the_gradient_through_hidden_state_terms_equals_finite_differences_too():
    teacher, student = double_pair()
    terms = [PatientLoss(0.7, ((0,), (2,))), HiddenLoss(0.3, ((1,), (2,)))]
    distiller = meta_distiller(teacher, student, alpha=0.0, hidden_terms=terms)
    assert_gradient_equals_finite_differences(distiller, teacher)


@pytest.mark.parametrize(
    "changes",
    [{}, {"soft": "mse"}, {"assumed_optimizer": "adamw", "assumed_lr": 0.02, "eps": 1e-2}, {"max_grad_norm": 0.01}],
)
@pytest.mark.parametrize("num_labels", [3, 1])
def test_three_steps_equal_the_literal_method(changes, num_labels):
    teacher, student = double_pair(num_labels)
    slow_teacher, slow_student = double_pair(num_labels, attn_implementation="eager")
    slow_teacher.eval()
    distiller = meta_distiller(teacher, student, **changes)
    optimizers = adamw(slow_student, 1e-2), adamw(slow_teacher, 1e-2)
    for seed in range(3):
        lesson, quiz = (batch(seed=s, num_labels=num_labels) for s in (seed, seed + 50))
        distiller.step(lesson, quiz)
        literal_metadistil_step(lesson, quiz, slow_teacher, slow_student, {**SETTINGS, **changes}, *optimizers)
    for model, expected in ((teacher, slow_teacher), (student, slow_student)):
        for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-7, msg=name)


def test_three_steps_move_every_teacher_layer_by_far_more_than_the_literal_test_forgives(pair):
    teacher, student = pair
    before = weights(teacher)
    distiller = meta_distiller(teacher, student)
    for seed in range(3):
        distiller.step(batch(seed=seed), batch(seed=seed + 50))
    for layer in range(3):
        name = f"bert.encoder.layer.{layer}.output.dense.weight"
        assert (teacher.get_parameter(name) - before[name]).abs().mean() > 1e-3


def test_the_assumed_step_leaves_student_and_teacher_as_they_were(pair):
    teacher, student = pair
    before = weights(teacher), weights(student)
    distiller = meta_distiller(teacher, student)
    theta_s_prime, _ = distiller.assume_step(batch())
    distiller.take_quiz(theta_s_prime, batch(seed=9))
    assert not changed(before[0], teacher)
    assert not changed(before[1], student)
    assert all(parameter.grad is None for model in pair for parameter in model.parameters())


def test_the_real_step_starts_from_the_student_before_the_assumed_one():
    """With a real learning rate of 0 the student stays, whatever was assumed."""
    teacher, student = bert(3, seed=1), bert(2, seed=2)
    before = weights(student)
    meta_distiller(teacher, student, lr=0.0, assumed_lr=5.0).step(batch(), batch(seed=9))
    assert not changed(before, student)


def test_the_real_step_learns_from_the_updated_teacher(pair):
    teacher, student = pair
    distiller = meta_distiller(teacher, student, mu=0.1)
    original, seen = distiller.teacher.targets, []
    distiller.teacher.targets = lambda *args, **asked: seen.append(original(*args, **asked)) or seen[-1]
    distiller.step(batch(), batch(seed=9))
    (targets,) = seen
    torch.testing.assert_close(targets.logits, distiller.teacher(batch()))


def test_the_teacher_step_goes_down_the_quiz_loss(pair):
    teacher, student = pair
    distiller = meta_distiller(teacher, student, lr=0.0, mu=1e-3)
    losses = [distiller.step(batch(), batch(seed=9))["quiz_loss"].item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1e-3


def test_the_student_never_takes_a_step_on_the_quiz(pair):
    """With a teacher that stays, another quiz changes nothing for the student."""
    students = []
    for seed in (9, 10):
        teacher, student = bert(3, seed=1), bert(2, seed=2)
        meta_distiller(teacher, student, mu=0.0).step(batch(), batch(seed=seed))
        students.append(student)
    assert not changed(weights(students[0]), students[1])


def test_dropout_is_in_the_lesson_and_not_in_the_quiz():
    teacher, student = bert(3, seed=1), bert(2, seed=2, dropout=0.5)
    distiller = meta_distiller(teacher, student)
    distiller.student.train()
    lessons = [distiller.assume_step(batch())[1] for _ in range(2)]
    assert lessons[0] != lessons[1]
    theta_s = dict(distiller.student.named_parameters())
    quizzes = [distiller.take_quiz(theta_s, batch(seed=9)) for _ in range(2)]
    assert quizzes[0] == quizzes[1]
    assert student.training


def test_the_teacher_teaches_without_dropout():
    teacher, student = bert(3, seed=1, dropout=0.5), bert(2, seed=2)
    distiller = meta_distiller(teacher, student, lr=0.0, mu=0.0)
    teacher.train()
    losses = {distiller.step(batch(), batch(seed=9))["assumed_loss"].item() for _ in range(3)}
    assert len(losses) == 1


def test_the_student_is_back_in_train_mode_after_an_evaluation(pair):
    distiller = meta_distiller(*pair)
    distiller.student.eval()
    distiller.step(batch(), batch(seed=9))
    assert pair[1].training


def test_a_batch_without_a_quiz_is_refused(pair):
    with pytest.raises(ValueError, match=r"takes a quiz batch as second argument, .*: call step\(batch, quiz_batch\)"):
        meta_distiller(*pair).step(batch())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet", "albert"])
def test_every_architecture_and_unequal_widths_work(kind):
    teacher, student = classifier(kind, 3, width=24, seed=1), classifier(kind, 2, seed=2)
    before = weights(teacher), weights(student)
    meta_distiller(teacher, student).step(batch(), batch(seed=9))
    for model, old in ((teacher, before[0]), (student, before[1])):
        assert any("layer" in name for name in changed(old, model))
        assert any(name.startswith("classifier") for name in changed(old, model))


def test_frozen_weights_of_either_model_stay(pair):
    teacher, student = pair
    for model in pair:
        model.bert.embeddings.requires_grad_(False)
    before = weights(teacher), weights(student)
    meta_distiller(teacher, student).step(batch(), batch(seed=9))
    for model, old in zip(pair, before, strict=True):
        moved = changed(old, model)
        assert not any(".embeddings." in name for name in moved)
        assert any(".layer." in name for name in moved)


def test_bf16_autocast_leaves_weights_and_logs_in_float32(pair):
    from reptile_distil.models.classifier import Student, Teacher

    teacher, student = (
        kind(m, autocast_dtype=torch.bfloat16) for kind, m in zip((Teacher, Student), pair, strict=True)
    )
    before = weights(pair[0])
    logs = meta_distiller(teacher, student).step(batch(), batch(seed=9))
    assert changed(before, pair[0])
    assert {value.dtype for value in logs.values()} == {torch.float32}


def test_the_logs_are_scalars_without_a_graph_and_no_gradient_is_left_on_the_teacher(pair):
    logs = meta_distiller(*pair).step(batch(), batch(seed=9))
    assert set(logs) == {
        "loss",
        "task_loss",
        "distillation_loss",
        "grad_norm",
        "assumed_loss",
        "quiz_loss",
        "teacher_grad_norm",
    }
    assert all(value.shape == () and not value.requires_grad for value in logs.values())
    assert all(parameter.grad is None for parameter in pair[0].parameters())


def test_two_distillers_in_one_process_do_not_touch_each_other(pair):
    alone = copy.deepcopy(pair)
    meta_distiller(*alone).step(batch(), batch(seed=9))
    first, second = meta_distiller(*pair), meta_distiller(bert(3, seed=3), bert(2, seed=4), soft="mse")
    second.step(batch(seed=5), batch(seed=6))
    first.step(batch(), batch(seed=9))
    for a, b in zip(alone, pair, strict=True):
        assert not changed(weights(a), b)


def test_a_loss_without_the_teacher_is_refused(pair):
    with pytest.raises(ValueError, match="alpha = 0 leaves the teacher out of the loss"):
        meta_distiller(*pair, alpha=0.0)
    with pytest.raises(ValueError, match="regression = 'none' leaves the teacher out of the loss"):
        meta_distiller(*double_pair(num_labels=1), regression="none")


def test_an_unknown_assumed_optimizer_is_refused(pair):
    with pytest.raises(ValueError, match="assumed_optimizer = 'adam': expected 'sgd' or 'adamw'"):
        meta_distiller(*pair, assumed_optimizer="adam")
