"""Measured steps: which ones, what is extrapolated from them, and what they leave behind."""

import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.data.features import Features
from reptile_distil.experiments.trial_steps import TrialSteps, mean_seconds, run_trial_steps
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.training.cuda_graphs import GraphedSteps
from tests.helpers.models import bert
from tests.training.test_cuda_graphs import FakeRecorder

LENGTHS = (3, 3, 3, 3, 5, 5, 5, 5, 9, 9, 9, 9)


def batches(lengths=LENGTHS, batch_size=2):
    tokens = np.ones(sum(lengths), dtype=np.int64)
    columns = {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}
    labels = np.zeros(len(lengths), dtype=np.int64)
    features = Features.end_to_end(columns, np.array(lengths), labels)
    return Batches(features, toy_tokenizer(), batch_size=batch_size)


class Recorder:
    """A method that notes the shape of each batch."""

    def __init__(self):
        self.shapes = []

    def step(self, batch):
        self.shapes.append(tuple(batch["input_ids"].shape))
        torch.rand(1)
        return {}


def trial(method, optimizers, *, teacher=None, teacher_moves=False, student=None, train=None):
    student = student or Student(bert(1))
    return run_trial_steps(
        method,
        optimizers,
        train or batches(),
        [batches()],
        student=student,
        teacher=teacher,
        teacher_moves=teacher_moves,
        length=8,
    )


@pytest.mark.parametrize(
    ("sizes", "measured", "mean"),
    [
        ([10, 20, 30], {20: 2.0, 30: 3.0}, 2.0),
        ([10, 10, 40], {10: 2.0, 40: 5.0}, 3.0),
        ([10, 20, 30, 100], {20: 1.0, 100: 1.8}, 1.2),  # 0.8 + 0.01 * 40
        ([7, 7, 7], {7: 0.5}, 0.5),
        ([5, 10, 15], {10: 1.0}, 1.0),
        ([10, 20, 30], {20: 3.0, 30: 2.0}, 2.0),  # a falling line: 5 s for 50 tokens, in proportion
        ([10, 20, 30], {20: 1.0, 30: 4.0}, 2.0),  # a line below zero: the same
    ],
)
def test_the_mean_lies_on_the_line_through_two_batches(sizes, measured, mean):
    assert mean_seconds(sizes, measured) == pytest.approx(mean)


def test_a_run_takes_its_steps_its_evaluations_and_what_is_done_once():
    measured = TrialSteps(0.5, 3.0, 7.0, peak_memory=0, model_bytes=0, checkpoint_bytes=0)
    assert measured.seconds(num_steps=100, num_evaluations=4) == 50 + 12 + 7


def test_one_step_warms_up_and_a_median_and_the_longest_batch_are_measured():
    method = Recorder()
    trial(method, {}, train=batches(lengths=(20, 2, 9, 3, 11), batch_size=1))
    assert method.shapes == [(1, 9), (1, 9), (1, 20)]


def test_a_trial_draws_no_random_numbers_of_the_run():
    student = Student(bert(1))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trial(Recorder(), {}, student=student)
    assert torch.equal(torch.rand(1), expected)


def test_the_models_modes_are_restored():
    student = Student(bert(1)).train()
    trial(Recorder(), {}, student=student)
    assert student.training


@pytest.mark.parametrize("moves", [False, True])
def test_a_checkpoint_holds_weights_two_moments_of_each_and_their_steps(moves):
    teacher, student = Teacher(bert(2)), Student(bert(1))
    optimizers = {"lr": adamw(student, lr=1e-3)}
    method = KnowledgeDistiller(teacher, student, loss=DistillationLoss(), student_optimizer=optimizers["lr"])
    measured = trial(method, optimizers, teacher=teacher, teacher_moves=moves, student=student)
    counts = [parameter.numel() for parameter in student.parameters()]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in student.state_dict().values())
    assert measured.model_bytes == buffers == 4 * sum(counts)
    of_teacher = 4 * sum(parameter.numel() for parameter in teacher.parameters())
    assert measured.checkpoint_bytes == 12 * sum(counts) + 4 * len(counts) + (of_teacher if moves else 0)


def test_a_teacher_that_moves_is_examined_each_time_and_a_frozen_one_once(monkeypatch):
    """With a second for each batch: six batches of 68 tokens in all; latency takes 3 rounds of 1 row of 8, 2 of 32."""
    monkeypatch.setattr("reptile_distil.experiments.trial_steps.mean_seconds", lambda sizes, measured: 1.0)
    teacher = Teacher(bert(2))
    alone = trial(Recorder(), {})
    still, moving = (trial(Recorder(), {}, teacher=teacher, teacher_moves=moves) for moves in (False, True))
    assert [one.evaluation_seconds for one in (alone, still, moving)] == [6, 6, 12]
    assert alone.once_seconds == 0
    assert still.once_seconds == moving.once_seconds == pytest.approx(6 + (3 * 1 + 2 * 32) * 8 * 12 / 68)


def test_memory_is_measured():
    assert trial(Recorder(), {}).peak_memory > 10**7


def test_with_graphs_the_steps_that_count_are_replays():
    """Of both sizes; a shape's first two steps are taken as usual, and its third is recorded and then replayed."""
    recorder, method = FakeRecorder(), Recorder()
    trial(GraphedSteps(method, [], batch_size=2, new_recorder=lambda: recorder), {})
    assert recorder.taken[:4] == ["run", "run", "record", "replay"]
    assert recorder.taken[-2:] == ["replay"] * 2
    assert recorder.taken.count("record") == len(set(method.shapes))


def test_only_the_devices_random_numbers_are_kept(monkeypatch):
    """`fork_rng` keeps those of every GPU unless it is told which."""
    forked, fork = [], torch.random.fork_rng

    def note(devices=None, **options):
        forked.append(devices)
        return fork(devices=devices, **options)

    monkeypatch.setattr(torch.random, "fork_rng", note)
    trial(Recorder(), {})
    assert forked == [[]]
