"""Graphs, which the pretended GPU repeats with whatever was a number when they were recorded."""

import contextlib

import pytest
import torch

from reptile_distil.errors import RunError
from reptile_distil.training.cuda_graphs import GraphedSteps
from tests.helpers.models import batch
from tests.training.test_cuda_graphs import assert_same, build, on_gpu, some_batches, take_steps


def test_a_learning_rate_that_is_baked_into_a_graph_is_noticed(gpu, monkeypatch):
    """A mutant: the rates stay numbers while a graph is recorded, so that a replay repeats the first one's."""

    def only_capturable(self):
        for group in self._groups():
            group.update({"capturable": True} if "capturable" in group else {})
        yield

    monkeypatch.setattr(GraphedSteps, "_rates_on_the_device", contextlib.contextmanager(only_capturable))
    method, optimizers, models = on_gpu("kd")
    take_steps(method, optimizers, some_batches("cuda"))
    plain, plain_optimizers, plain_models = build("kd", device="cuda", dtype=torch.float32)
    take_steps(plain, plain_optimizers, some_batches("cuda"))
    with pytest.raises(AssertionError):
        assert_same(models, plain_models, atol=1e-4)


def test_a_step_that_reads_a_number_cannot_be_recorded(gpu, monkeypatch):
    method, _, _ = on_gpu("finetune")
    step = method.method.step

    def reads(given):
        logs = step(given)
        float(logs["loss"])
        return logs

    method.method.step = reads
    there = {name: tensor.to("cuda") for name, tensor in batch().items()}
    for _ in range(2):
        method.step(there)
    with pytest.raises(RunError, match="cannot be recorded"):
        method.step(there)
