"""One vocabulary with unequally many embeddings, as padding leaves it: Reptile matches the rows that both have."""

import copy
import logging

import pytest
import torch

from reptile_distil.errors import LayerMapError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.layer_map import match_models
from reptile_distil.runtime.each_line_once import log_once
from tests.helpers.models import batch, bert, weights, with_rows
from tests.oracles.reptile import literal_step, literal_student_first_step

TABLE = "bert.embeddings.word_embeddings.weight"
SETTINGS = {"alpha": 0.3, "temperature": 4.0, "max_grad_norm": 1.0, "inner_lr": 1e-2, "eps": 1e-4}
SIZES = pytest.mark.parametrize(("in_teacher", "in_student"), [(37, 30), (30, 37)])


def models(in_teacher, in_student):
    teacher, student = bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
    return with_rows(teacher, in_teacher, seed=3), with_rows(student, in_student, seed=4)


def teacher_optimizer(model, update):
    if update == "interpolate":
        return torch.optim.SGD(model.parameters(), lr=1e-2)
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)


def distiller(teacher, student, *, update="adamw", **options):
    return ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=torch.optim.AdamW(student.parameters(), lr=1e-2, eps=1e-4),
        teacher_optimizer=teacher_optimizer(teacher, update),
        update=update,
        **options,
    )


@SIZES
@pytest.mark.parametrize("update", ["adamw", "interpolate"])
@pytest.mark.parametrize("way", ["adamw", "sgd", "student_first"])
def test_five_steps_equal_the_literal_method(in_teacher, in_student, update, way):
    teacher, student = models(in_teacher, in_student)
    expected_teacher, expected_student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    options = {"order": way} if way == "student_first" else {"inner_optimizer": way, "inner_lr": 1e-2}
    settings = {**SETTINGS, "layer_map": "skip", "update": update, "inner_optimizer": way}
    fast = distiller(teacher, student, update=update, **({"inner_eps": 1e-4, **options}))
    student_optimizer = torch.optim.AdamW(expected_student.parameters(), lr=1e-2, eps=1e-4)
    expected_optimizer = teacher_optimizer(expected_teacher, update)
    literal = literal_student_first_step if way == "student_first" else literal_step
    settings["masks_of_equation_3"] = "same"
    for seed in range(5):
        fast.step(batch(seed=seed))
        literal(batch(seed=seed), expected_teacher, expected_student, settings, student_optimizer, expected_optimizer)
    for model, expected in ((teacher, expected_teacher), (student, expected_student)):
        for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)


@SIZES
@pytest.mark.parametrize("inner_optimizer", ["adamw", "persistent_adamw"])
def test_rows_that_both_have_move_and_the_teachers_others_stay(in_teacher, in_student, inner_optimizer):
    teacher, student = models(in_teacher, in_student)
    before = weights(teacher)[TABLE]
    distiller(
        teacher, student, inner_optimizer=inner_optimizer, share_forward=inner_optimizer == "adamw", inner_eps=1e-4
    ).step(batch())
    moved = (teacher.get_parameter(TABLE).detach() != before).any(1)
    assert moved.tolist() == [0 < row < min(in_teacher, in_student) for row in range(in_teacher)]  # [PAD] is 0


@SIZES
def test_the_gap_is_that_of_the_rows_that_both_have(in_teacher, in_student):
    teacher, student = models(in_teacher, in_student)
    ours = distiller(teacher, student, order="student_first")
    with torch.no_grad():
        for theta_t, theta_s in ((pair.teacher, pair.student) for pair in ours.pairs):
            rows = min(len(theta_t), len(theta_s))
            theta_t[:rows] = theta_s[:rows]
        teacher.get_parameter(TABLE)[:2] += 3.0
    student.requires_grad_(False)
    ours.student.zero_grad(set_to_none=True)
    assert ours.update_teacher() == pytest.approx(3.0 * (2 * 16) ** 0.5)


def test_the_log_says_how_many_rows_are_matched(caplog):
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        match_models(*models(120, 113), "skip")
        match_models(*models(120, 113), "skip")
    assert caplog.messages == [
        "the teacher has 120 embeddings, the student 113: the first 113 are matched, the others stay as they are in "
        "equation 2"
    ]


def test_tables_that_are_as_different_as_the_depths_are_tables_all_the_same():
    """60 rows against 30, 4 layers against 2: not something that grows with depth."""
    names = {pair.teacher_name for pair in match_models(*models(60, 30), "skip")}
    assert TABLE in names


@pytest.mark.parametrize("width", [32, 8])
def test_tables_of_other_widths_are_refused(width):
    with pytest.raises(LayerMapError, match="Reptile needs teacher and student of equal width"):
        match_models(with_rows(bert(4), 37), bert(2, width=width), "skip")


def test_metadistil_matches_nothing_and_takes_any_two():
    teacher, student = models(37, 30)
    method = MetaDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=0.5, temperature=2.0),
        student_optimizer=torch.optim.AdamW(student.parameters()),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
    )
    assert method.step(batch(), batch(seed=1))["loss"].isfinite()
