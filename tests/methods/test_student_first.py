"""Reptile with the student's step first: equal to its literal version, and one promise at a time."""

import copy

import pytest
import torch

from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation
from tests.helpers.models import batch, bert, changed, weights
from tests.oracles.reptile import literal_student_first_step

SETTINGS = {"alpha": 0.3, "temperature": 4.0, "layer_map": "skip", "update": "adamw"}
EPS = 1e-2  # an AdamW with a smaller one blows the rounding of differences near 0 up, step by step


def new_optimizers(teacher, student, update):
    student_optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, eps=EPS)
    if update == "interpolate":
        return student_optimizer, torch.optim.SGD(teacher.parameters(), lr=1e-2)
    return student_optimizer, torch.optim.AdamW(teacher.parameters(), lr=1e-2, weight_decay=0.0, eps=EPS)


def distiller(teacher, student, *, update="adamw", layer_map="skip", **options):
    student_optimizer, teacher_optimizer = new_optimizers(teacher, student, update)
    return ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=student_optimizer,
        teacher_optimizer=teacher_optimizer,
        layer_map=layer_map,
        update=update,
        order="student_first",
        **options,
    )


@pytest.fixture
def pair():
    return bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)


# PyTorch clips to max_norm / (norm + 1e-6), the literal version to max_norm / norm.
@pytest.mark.parametrize(("max_grad_norm", "tolerance"), [(1e6, 1e-9), (1.0, 1e-6)])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("layer_map", ["first", "last", "skip", "both"])
@pytest.mark.parametrize("update", ["adamw", "interpolate"])
def test_five_steps_equal_the_literal_method(pair, update, layer_map, micro_batch_size, max_grad_norm, tolerance):
    teacher, student = pair
    expected_teacher, expected_student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    optimizers = new_optimizers(expected_teacher, expected_student, update)
    settings = {**SETTINGS, "update": update, "layer_map": layer_map, "max_grad_norm": max_grad_norm}
    options = {"micro_batch_size": micro_batch_size, "max_grad_norm": max_grad_norm}
    fast = distiller(teacher, student, update=update, layer_map=layer_map, **options)
    for seed in range(5):
        fast.step(batch(seed=seed))
        literal_student_first_step(batch(seed=seed), expected_teacher, expected_student, settings, *optimizers)
    for model, expected in ((teacher, expected_teacher), (student, expected_student)):
        for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=tolerance, msg=name)


def test_a_step_asks_each_model_once(pair, monkeypatch):
    teacher, student = pair
    calls = []
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_hook(lambda *_, name=name: calls.append(name))
    logs = distiller(teacher, student).step(batch())
    assert sorted(calls) == ["student", "teacher"]
    assert "inner_loss" not in logs


def test_the_gap_is_that_to_the_student_after_its_step(pair):
    teacher, student = pair
    before = copy.deepcopy(teacher)
    logs = distiller(teacher, student).step(batch())
    matched = {0: 1, 1: 3}
    squares = 0.0
    for name, theta_s in student.named_parameters():
        if ".layer." in name:
            layer = int(name.split(".layer.")[1].split(".")[0])
            name = name.replace(f".layer.{layer}.", f".layer.{matched[layer]}.")
        squares += float((dict(before.named_parameters())[name] - theta_s).detach().square().sum())
    assert float(logs["gap"]) == pytest.approx(squares**0.5, rel=1e-9)


def test_no_gradient_is_left_on_either_model_and_unmatched_layers_stay(pair):
    teacher, student = pair
    before = weights(teacher)
    distiller(teacher, student).step(batch())
    assert all(theta.grad is None for theta in (*teacher.parameters(), *student.parameters()))
    moved = changed(before, teacher)
    assert moved
    assert not any(".layer.0." in name or ".layer.2." in name for name in moved)


def test_with_every_the_teacher_rests_in_between(pair):
    teacher, student = pair
    method = distiller(teacher, student, ablation=Ablation(every=2))
    moved = []
    for seed in range(4):
        before = weights(teacher)
        logs = method.step(batch(seed=seed))
        moved.append(bool(changed(before, teacher)))
        assert logs["gap"] > 0
    assert moved == [True, False, True, False]


@pytest.mark.parametrize(
    "options",
    [
        {"inner_optimizer": "sgd"},
        {"inner_optimizer": "persistent_adamw"},
        {"share_forward": False},
        {"ablation": Ablation(inner_steps=2)},
        {"ablation": Ablation(inner_batch="held_out")},
    ],
)
def test_options_of_the_inner_step_are_refused(pair, options):
    with pytest.raises(ValueError, match="order = 'student_first' has no inner step"):
        distiller(*pair, **options)


@pytest.mark.parametrize(
    "option", ["inner_lr=1e-3", "inner_eps=1e-8", "inner_optimizer=sgd", "share_forward=false", "inner_steps=2"]
)
def test_options_of_the_inner_step_are_refused_in_a_configuration(option):
    key = option.partition("=")[0]
    others = ["reptile.share_forward=false"] if key == "inner_steps" else []
    with pytest.raises(ConfigError, match="belongs to equation 1, which order: student_first does not have"):
        load_config("quickstart", ["reptile.order=student_first", f"reptile.{option}", *others])


def test_runs_made_before_there_was_a_choice_are_those_of_the_published_order():
    published, other = (load_config("quickstart", [f"reptile.order={o}"]) for o in ("teacher_first", "student_first"))
    assert "reptile.order" not in published.defining_settings("reptile")
    assert other.defining_settings("reptile")["reptile.order"] == "student_first"
