"""Graphs, which the pretended GPU repeats with whatever was a number when they were recorded."""

import contextlib

import numpy as np
import pytest
import torch

from reptile_distil.errors import RunError
from reptile_distil.training.cuda_graphs import GraphedSteps
from tests.helpers.models import batch
from tests.pretend_gpu.cases.steps import RAGGED, rows
from tests.pretend_gpu.cases.steps import build as build_step
from tests.training.test_cuda_graphs import assert_same, build, on_gpu, some_batches, take_steps, with_transfer_rows


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "kd", "adamw"])
def test_a_replay_reads_which_rows_of_its_batch_have_labels(gpu, name):
    """Their number changes from batch to batch: one that were baked in would be the recorded batch's."""
    batches = [with_transfer_rows(given, seed) for seed, given in enumerate(some_batches("cuda"))]
    method, optimizers, models = on_gpu(name)
    take_steps(method, optimizers, batches)
    plain, plain_optimizers, plain_models = build(name, device="cuda", dtype=torch.float32)
    take_steps(plain, plain_optimizers, batches)
    assert method.num_graphs == 2
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


@pytest.mark.parametrize(
    "name", ["kd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "student_first adamw"))]
)
def test_half_precision_copies_follow_the_weights_that_graphs_change(gpu, name):
    """With an evaluation before the recording, and one between replays; within bfloat16's rounding."""
    losses = []
    for graphs in (True, False):
        method = build_step(name, autocast_dtype=torch.bfloat16, dropout=0.0)
        optimizers = [method.gradient_step.optimizer, *([method.teacher_optimizer] if name != "kd" else [])]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.02  # some steps change the logits by far more than rounding does
        steps = GraphedSteps(method, optimizers, batch_size=6) if graphs else method
        given = rows(RAGGED).batch(np.arange(6))
        of_this, models = [], (method.student, method.teacher)
        for number in range(8):
            of_this.append(float(steps.step(given)["loss"]))
            if number in (1, 5):  # before the recording, which comes in the third step; and between replays
                with torch.no_grad():
                    of_this += [float(model(given).float().square().sum()) for model in models]
        losses.append(of_this)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert abs(losses[1][-1] - losses[1][0]) > 0.05
