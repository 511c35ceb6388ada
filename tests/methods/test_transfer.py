"""Batches with transfer rows: every method against its literal version, and no label of theirs is ever read."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss, task_loss, task_loss_of
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import TeacherRegularization
from reptile_distil.methods.step import GradientStep
from tests.helpers.models import batch, bert, changed, mixed, weights
from tests.oracles.lgtm import literal_lgtm_step
from tests.oracles.metadistil import literal_metadistil_step
from tests.oracles.prokt import literal_loss, literal_prokt_step, literal_step
from tests.oracles.reptile import literal_step as literal_reptile_step
from tests.oracles.reptile import literal_student_first_step

SETTINGS = {
    "alpha": 0.3,
    "beta": 0.4,
    "temperature": 4.0,
    "soft": "kl",
    "eps": 1e-4,
    # PyTorch clips to max_norm / (norm + 1e-6), Reptile's and MetaDistil's literal versions to max_norm / norm.
    "max_grad_norm": 1e6,
    "layer_map": "skip",
    "update": "adamw",
    "inner_lr": 1e-2,
    "inner_optimizer": "adamw",
    "influence": 2.0,
    "radius": 1e-2,
    "assumed_optimizer": "sgd",
    "assumed_lr": 0.1,
}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=SETTINGS["eps"])


def options(*names):
    return {name: SETTINGS[name] for name in names}


REPTILE = ("layer_map", "update", "inner_lr", "inner_optimizer", "max_grad_norm")
LGTM = ("beta", "influence", "radius", "assumed_optimizer", "assumed_lr", "max_grad_norm")


def kd(batch, quiz, teacher, student, settings, student_optimizer, teacher_optimizer):
    literal_step(student, literal_loss(student, teacher, batch, settings["alpha"], settings), student_optimizer, 1e6)


def without_quiz(step):
    return lambda batch, quiz, *rest: step(batch, *rest)


def prokt(**changes):
    """The literal step with these settings."""

    def step(batch, quiz, teacher, student, settings, *optimizers):
        literal_prokt_step(batch, teacher, student, {**settings, **changes}, *optimizers)

    return step


def moving(method, **more):
    """Makes a method that has a teacher's optimizer."""
    return lambda t, s, shared: method(t, s, teacher_optimizer=adamw(t), **more, **shared)


# How each is made, its literal step, and whether it takes a quiz.
METHODS = {
    "kd": (lambda t, s, shared: KnowledgeDistiller(t, s, max_grad_norm=1e6, **shared), kd, False),
    "reptile": (
        moving(ReptileDistiller, inner_eps=1e-4, **options(*REPTILE)),
        without_quiz(literal_reptile_step),
        False,
    ),
    "reptile, new masks": (
        moving(ReptileDistiller, inner_eps=1e-4, share_forward=False, **options(*REPTILE)),
        without_quiz(literal_reptile_step),
        False,
    ),
    "reptile, student first": (
        moving(ReptileDistiller, order="student_first", **options("layer_map", "update", "max_grad_norm")),
        without_quiz(literal_student_first_step),
        False,
    ),
    "prokt": (moving(ProKTDistiller, beta=0.4, max_grad_norm=1e6), prokt(order="together"), False),
    "prokt, teacher first": (
        moving(ProKTDistiller, beta=0.4, order="teacher_first", max_grad_norm=1e6),
        prokt(order="teacher_first"),
        False,
    ),
    "cotrain": (moving(CoTrainer, max_grad_norm=1e6), prokt(order="together", beta=0.0), False),
    "lgtm": (moving(InfluenceDistiller, assumed_eps=1e-4, **options(*LGTM)), literal_lgtm_step, True),
    "metadistil": (moving(MetaDistiller, assumed_lr=0.1, max_grad_norm=1e6), literal_metadistil_step, True),
}
ALL = pytest.mark.parametrize("name", METHODS)


def make(name, teacher, student, **more):
    shared = {"loss": DistillationLoss(alpha=0.3, temperature=4.0), "student_optimizer": adamw(student), **more}
    return METHODS[name][0](teacher, student, shared)


def pair(num_labels=3):
    # Eager: function transforms cannot differentiate other attention twice.
    shape = {"num_labels": num_labels, "dtype": torch.float64, "attn_implementation": "eager"}
    return bert(4, seed=1, **shape), bert(2, seed=2, **shape)


def lesson(seed, num_labels=3, rows=7):
    given = mixed(batch(rows, seed=seed, num_labels=num_labels))
    if num_labels == 1:
        given["labels"] = given["labels"].double()
    return given


def take(method, name, given, seed=0, num_labels=3):
    quiz = [batch(5, seed=seed + 50, num_labels=num_labels)] if METHODS[name][2] else []
    return method.step(given, *quiz)


def assert_equal(models, expected, *, atol):
    for model, other in zip(models, expected, strict=True):
        for (name, value), wanted in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("name", "num_labels"),
    [*((name, 3) for name in METHODS), *((name, 1) for name in METHODS if "reptile" not in name)],
)
def test_three_steps_on_mixed_batches_equal_the_literal_method(name, num_labels):
    models, slow = pair(num_labels), pair(num_labels)
    slow[0].eval()
    method, literal = make(name, *models), METHODS[name][1]
    optimizers = adamw(slow[1]), adamw(slow[0])
    for seed in range(3):
        given = lesson(seed, num_labels)
        take(method, name, given, seed, num_labels)
        quiz = batch(5, seed=seed + 50, num_labels=num_labels)
        literal(given, quiz, *slow, SETTINGS, *optimizers)
    assert_equal(models, slow, atol=1e-9)
    assert changed(weights(pair(num_labels)[1]), models[1])


@ALL
def test_a_hidden_label_changes_not_one_bit(name):
    """Whatever stands where a label would, also one that is allowed."""
    ends = []
    for hidden in (-1, 2):
        models = pair()
        method = make(name, *models)
        for seed in range(2):
            given = lesson(seed)
            labels = torch.where(given["labels"] < 0, hidden, given["labels"])
            take(method, name, {**given, "labels": labels}, seed)
        ends.append([weights(model) for model in models])
    for end in ends[1:]:
        for of_model, first in zip(end, ends[0], strict=True):
            assert all(torch.equal(of_model[key], first[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "metadistil"])
@pytest.mark.parametrize("rows", [2])
def test_micro_batches_leave_the_batchs_steps(name, rows):
    """Also those that hold no labelled row at all."""
    whole, parts = pair(), pair()
    methods = make(name, *whole), make(name, *parts, micro_batch_size=rows)
    for seed in range(2):
        logs = [take(method, name, lesson(seed), seed) for method in methods]
    for key in ("loss", "task_loss", "distillation_loss"):
        torch.testing.assert_close(logs[1][key], logs[0][key], rtol=0, atol=1e-12)
    assert_equal(whole, parts, atol=1e-9)


def test_each_term_is_the_mean_over_the_rows_that_have_it():
    teacher, student = pair()
    given = lesson(0)
    logs = make("kd", teacher, student).step(given)
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    teacher, student = pair()
    with torch.no_grad():
        z_t, z_s = teacher(**inputs).logits, student(**inputs).logits
    labelled = [0, 3, 6]
    task = torch.stack([-torch.log_softmax(z_s[row], 0)[given["labels"][row]] for row in labelled]).mean()
    p, q = torch.softmax(z_t / 4, 1), torch.softmax(z_s / 4, 1)
    distillation = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(logs["task_loss"], task)
    torch.testing.assert_close(logs["distillation_loss"], distillation)
    torch.testing.assert_close(logs["loss"], 0.7 * task + 0.3 * distillation)


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("kind", ["classes", "scores", "sets"])
def test_the_task_loss_of_a_mixed_batch_is_that_of_its_labelled_rows(kind, class_weights):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 1 if kind == "scores" else 3, generator=generator, dtype=torch.float64)
    labels = {
        "classes": torch.randint(0, 3, (7,), generator=generator),
        "scores": torch.rand(7, generator=generator),
        "sets": torch.randint(0, 2, (7, 3), generator=generator).float(),
    }[kind]
    given, rows = mixed({"labels": labels}), [0, 3, 6]
    if kind == "scores" and class_weights:
        with pytest.raises(ValueError, match="class weights are for classes"):
            task_loss_of(logits, given, torch.tensor(class_weights))
        return
    by_class = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    expected = task_loss(logits[rows], labels[rows], by_class)
    torch.testing.assert_close(task_loss_of(logits, given, by_class), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["classes", "scores", "sets"])
def test_what_stands_for_a_label_cannot_be_used_by_mistake(kind):
    labels = {"classes": torch.tensor([0, -1]), "scores": torch.tensor([0.5, torch.nan])}
    labels["sets"] = torch.tensor([[0.0, 1.0], [torch.nan, torch.nan]])
    logits = torch.zeros(2, 1 if kind == "scores" else 2)
    refusals = {"classes": "a label is -1: expected a class from 0 to 1", "sets": "a number outside 0 to 1"}
    if kind in refusals:
        with pytest.raises(ValueError, match=refusals[kind]):
            task_loss(logits, labels[kind])
    else:
        assert task_loss(logits, labels[kind]).isnan()


@pytest.mark.parametrize("name", ["finetune", "task step", "cotrain"])
def test_a_step_down_the_task_loss_is_that_of_the_labelled_rows_alone(name):
    """Fine-tuning, the task step of a teacher that Reptile moves, and the teacher of cotrain."""
    given = lesson(0)
    labelled = {key: value[given["has_label"]] for key, value in given.items() if key != "task_weights"}
    ends = []
    for rows in (given, labelled):
        teacher, student = pair()
        if name == "finetune":
            FineTuner(teacher, student_optimizer=adamw(teacher)).step(rows)
        elif name == "task step":
            TeacherRegularization(teacher, task_step=GradientStep(adamw(teacher))).after_update(rows)
        else:
            make("cotrain", teacher, student).step(rows)
        ends.append(teacher)
    assert_equal(ends[:1], ends[1:], atol=1e-9)
    assert changed(weights(pair()[0]), ends[0])


@ALL
def test_a_batch_whose_rows_all_have_labels_needs_no_weights(name):
    plain, weighted = pair(), pair()
    given = batch(6)
    take(make(name, *plain), name, given)
    take(make(name, *weighted), name, {**given, "task_weights": torch.ones(6)})
    assert_equal(plain, weighted, atol=1e-12)


def test_the_batch_that_is_given_stays_as_it_was():
    given = lesson(0)
    before = copy.deepcopy(given)
    make("reptile", *pair()).step(given)
    for name, value in given.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
