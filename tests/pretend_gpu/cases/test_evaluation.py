"""Waits outside training: an evaluation waits once for a model's logits on a split, and once for the drift."""

import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.training.evaluation import Evaluator, predict_logits
from tests.helpers.models import bert
from tests.pretend_gpu.cases.steps import RAGGED, rows
from tests.pretend_gpu.device import waits_by_place


def split(batch_size):
    return Batches(rows(RAGGED).features, toy_tokenizer(), batch_size=batch_size, device="cuda")


@pytest.mark.parametrize("packed", [False, True])
def test_a_split_is_waited_for_once(gpu, packed):
    model = Student(bert(2).to("cuda"), packed=packed)
    gpu.forget()
    logits = predict_logits(model, split(2))
    assert len(gpu.waits) == 1, "\n".join(waits_by_place(gpu.waits))
    assert np.isfinite(logits).all()
    assert logits.shape == (6, 3)


@pytest.mark.parametrize("teacher_moves", [False, True])
def test_an_evaluation_waits_once_for_each_models_logits_and_once_for_the_drift(gpu, teacher_moves):
    student, teacher = Student(bert(2).to("cuda")), Teacher(bert(4, seed=1).to("cuda"))
    evaluator = Evaluator(student, {"dev": split(2)}, ["accuracy"], teacher=teacher, teacher_moves=teacher_moves)
    evaluator.score_teacher_at_start()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.01)
    gpu.forget()
    evaluation = evaluator.evaluate()
    assert len(gpu.waits) == (3 if teacher_moves else 1), "\n".join(waits_by_place(gpu.waits))
    number = sum(parameter.numel() for parameter in teacher.parameters())
    assert evaluation.teacher_drift == pytest.approx(0.01 * number**0.5 if teacher_moves else 0.0, rel=1e-3)
