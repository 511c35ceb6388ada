"""What a model costs: milliseconds of two models in turn, and the operations of a forward pass."""

import logging

import pytest
import torch
import transformers
from torch import nn

from reptile_distil.models import cost as latency
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.cost import compare_latency, flops_per_sequence
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
    teacher, student = Timed(clock, 9.0, 0.04, 0.2, 0.6), Timed(clock, 9.0, 0.01, 0.1, 0.3)
    measured = compare_latency(teacher, student, length=8, device="cpu")
    assert measured["batches"] == {
        "1": {"teacher_ms": pytest.approx(200), "student_ms": pytest.approx(100), "rounds": 3}
    }
    assert (measured["length"], measured["device"]) == (8, "cpu")


def test_a_fast_pair_is_measured_fifteen_times_and_a_slow_one_twice(clock):
    fast = compare_latency(Timed(clock, 0.001), Timed(clock, 0.001), length=8, device="cpu")
    slow = compare_latency(Timed(clock, 0.3), Timed(clock, 0.3), length=8, device="cpu")
    assert [of_size["rounds"] for of_size in fast["batches"].values()] == [15, 15]
    assert [of_size["rounds"] for of_size in slow["batches"].values()] == [2, 2]


def test_both_get_full_batches_of_1_and_32_in_eval_mode_without_gradients(clock):
    teacher, student = Timed(clock, 0.3), Timed(clock, 0.3)
    compare_latency(teacher, student, length=8, device="cpu")
    names = ("input_ids", "attention_mask", "token_type_ids")
    for model in (teacher, student):
        shapes = [shapes for shapes, _, _ in model.calls]
        assert shapes == [dict.fromkeys(names, (1, 8))] * 3 + [dict.fromkeys(names, (32, 8))] * 2
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


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_device_without_room_costs_the_measurement_not_the_run(clock, monkeypatch, caplog, error):
    def full(*_):
        raise error

    monkeypatch.setattr(latency, "_measure", full)
    with caplog.at_level(logging.WARNING):
        assert compare_latency(Timed(clock), Timed(clock), length=8, device="cpu") is None
    assert "latency not measured" in caplog.text


LENGTH, LAYERS, WIDTH, INNER, LABELS = 9, 3, 16, 64, 2
PROJECTIONS = 8 * LENGTH * WIDTH**2  # query, key, value and output
ATTENTION = 4 * LENGTH**2 * WIDTH  # scores and weighted sums
FEED_FORWARD = 4 * LENGTH * WIDTH * INNER
ENCODER = LAYERS * (PROJECTIONS + ATTENTION + FEED_FORWARD)
GATED = LAYERS * (PROJECTIONS + ATTENTION + FEED_FORWARD * 3 // 2)  # a third product, the gate
DENSE, HEAD = 2 * WIDTH**2, 2 * WIDTH * LABELS
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": INNER,
    "vocab_size": 30,
    "max_position_embeddings": 32,
    "num_labels": LABELS,
    "pad_token_id": 0,
}
# One token, the first, goes through a pooler and the head; in a decoder all of them go through the head.
EXPECTED = {
    "bert": (transformers.BertConfig(**SHAPE), ENCODER + DENSE + HEAD),
    "modernbert": (
        transformers.ModernBertConfig(**SHAPE, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2),
        GATED + DENSE + HEAD,
    ),
    # Beside the words, 64 relative positions are projected to keys and queries; each token meets each of them twice.
    "deberta-v2": (
        transformers.DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        ENCODER + LAYERS * (2 * 2 * 64 * WIDTH**2 + 2 * 2 * LENGTH * 64 * WIDTH) + DENSE + HEAD,
    ),
    "llama": (transformers.LlamaConfig(**SHAPE), GATED + LENGTH * HEAD),
    "gpt2": (
        transformers.GPT2Config(
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=2,
            vocab_size=30,
            n_positions=32,
            num_labels=LABELS,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        ENCODER + LENGTH * HEAD,
    ),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_operations_are_those_of_the_matrix_products(kind, attention):
    config, expected = EXPECTED[kind]
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    if (kind, attention) != ("deberta-v2", "sdpa"):  # which it does not have
        model.set_attn_implementation(attention)
    with torch.no_grad():  # PyTorch's counter alone would fail on DeBERTa here
        counted = flops_per_sequence(model, LENGTH)
    assert counted == expected


@pytest.mark.parametrize("kind", ["roberta", "electra", "mpnet", "albert", "distilbert"])
def test_other_encoders_have_the_layers_of_bert(kind):
    """Width 16, feed-forward width 32. What is not in the layers is the same for each depth."""
    one, three = (flops_per_sequence(models.classifier(kind, depth), LENGTH) for depth in (1, 3))
    assert three - one == 2 * (PROJECTIONS + ATTENTION + FEED_FORWARD // 2)


def test_operations_of_bert_base_are_the_known_number():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
    encoder = 12 * (8 * 128 * 768**2 + 4 * 128**2 * 768 + 4 * 128 * 768 * 3072)
    assert flops_per_sequence(model, 128) == encoder + 2 * 768**2 + 2 * 768 * 2 == 22_348_434_432


@pytest.mark.parametrize("training", [True, False])
def test_counting_operations_leaves_the_model_as_it_was(training):
    model = models.bert(1).train(training)
    with torch.no_grad():
        flops_per_sequence(model, 4)
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())
