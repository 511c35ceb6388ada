"""Milliseconds of two models in turn: with what input, how often, and what is left as it was."""

import logging

import pytest
import torch
from torch import nn

from reptile_distil.models import cost as latency
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.cost import compare_latency
from tests.helpers import models


class Clock:
    """Clocks that move only when a model says so, in place of `time`: the processor takes a tenth of each second."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now / 10


class Timed(nn.Module):
    """A model that takes the seconds it is told, one call after the other, and notes what it was given."""

    def __init__(self, clock, *seconds):
        super().__init__()
        self.clock, self.seconds, self.calls = clock, seconds, []
        self.model = models.bert(1)

    def forward(self, batch):
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        self.calls.append((shapes, self.training, torch.is_grad_enabled()))
        self.clock.now += self.seconds[min(len(self.calls), len(self.seconds)) - 1]


@pytest.fixture
def clock(monkeypatch):
    """By the wall, as where there are two threads."""
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return clock


@pytest.mark.parametrize(("num_threads", "milliseconds"), [(1, 60), (2, 600)])
def test_one_thread_of_a_busy_cpu_is_timed_by_its_processor(clock, monkeypatch, num_threads, milliseconds):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    measured = compare_latency(Timed(clock, 0.6), Timed(clock, 0.2), length=8, device="cpu")
    assert measured["batches"]["1"]["teacher_ms"] == pytest.approx(milliseconds)
    assert measured["batches"]["32"]["student_ms"] == pytest.approx(milliseconds / 3)


def test_the_median_of_the_rounds_without_the_first_call(clock, monkeypatch):
    monkeypatch.setattr(latency, "BATCH_SIZES", (1,))
    teacher, student = Timed(clock, 9.0, 0.4, 0.8, 0.6), Timed(clock, 9.0, 0.1, 0.2, 0.3)
    measured = compare_latency(teacher, student, length=8, device="cpu")
    assert measured["batches"] == {
        "1": {"teacher_ms": pytest.approx(600), "student_ms": pytest.approx(200), "rounds": 3}
    }
    assert (measured["length"], measured["device"]) == (8, "cpu")


def test_a_fast_pair_is_measured_fifteen_times_and_a_slow_one_three_times(clock):
    fast = compare_latency(Timed(clock, 0.001), Timed(clock, 0.001), length=8, device="cpu")
    slow = compare_latency(Timed(clock, 0.3), Timed(clock, 0.3), length=8, device="cpu")
    assert [of_size["rounds"] for of_size in fast["batches"].values()] == [15, 15]
    assert [of_size["rounds"] for of_size in slow["batches"].values()] == [3, 3]


def test_both_get_full_batches_of_1_and_32_in_eval_mode_without_gradients(clock):
    teacher, student = Timed(clock, 0.3), Timed(clock, 0.3)
    compare_latency(teacher, student, length=8, device="cpu")
    names = ("input_ids", "attention_mask", "token_type_ids")
    for model in (teacher, student):
        shapes = [shapes for shapes, _, _ in model.calls]
        assert shapes == [dict.fromkeys(names, (1, 8))] * 4 + [dict.fromkeys(names, (32, 8))] * 4
        assert not any(training or grad for _, training, grad in model.calls)


def test_modes_and_random_numbers_stay_as_they_were():
    teacher, student = Teacher(models.bert(2)), Student(models.bert(1))
    student.train()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    compare_latency(teacher, student, length=8, device="cpu")
    assert student.training
    assert not teacher.training
    assert torch.rand(1) == expected


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "albert", "electra", "mpnet"])
def test_every_architecture_can_be_measured(kind):
    pair = Teacher(models.classifier(kind)), Student(models.classifier(kind, 1))
    measured = compare_latency(*pair, length=8, device="cpu")
    assert all(of_size["student_ms"] > 0 for of_size in measured["batches"].values())


def test_a_device_without_room_costs_the_measurement_not_the_run(clock, monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(latency, "_measure", full)
    with caplog.at_level(logging.WARNING):
        assert compare_latency(Timed(clock), Timed(clock), length=8, device="cpu") is None
    assert "latency not measured" in caplog.text
