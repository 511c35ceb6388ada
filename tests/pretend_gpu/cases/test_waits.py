"""How often a step waits for the device."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from reptile_distil.experiments.experiment import Experiment
from tests.helpers.paths import TINY
from tests.pretend_gpu.cases.steps import FULL, METHODS, RAGGED, build, given, take
from tests.pretend_gpu.device import waits_by_place

SHAPES = {
    "ragged": {"lengths": RAGGED},
    "full": {"lengths": FULL},
    "ragged bf16": {"lengths": RAGGED, "autocast_dtype": torch.bfloat16},
    "packed": {"lengths": RAGGED, "packed": True},
    "packed bf16": {"lengths": RAGGED, "packed": True, "autocast_dtype": torch.bfloat16},
}


def waits_of(gpu, name, *, lengths, mixed=False, **options):
    """Those of the second step: in the first, optimizers make their state."""
    method, batches = build(name, **options), given(name, lengths, mixed=mixed)
    for _ in range(2):
        gpu.forget()
        logs = take(method, batches)
    noted = list(gpu.waits)
    assert all(value.held.isfinite() for value in logs.values())
    return noted


def mostly_slow(cases, *by_default):
    """All the cases, those that are not named in the slow tier."""
    return [case if case in by_default else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("shape", "name"),
    mostly_slow(
        itertools.product(SHAPES, METHODS),
        *(("ragged", name) for name in METHODS),
        ("full", "kd"),
        ("ragged bf16", "adamw"),
        ("packed", "finetune"),
        ("packed", "kd"),
        ("packed", "student_first adamw"),
        ("packed bf16", "adamw"),
    ),
)
def test_a_step_waits_for_nothing(gpu, name, shape):
    noted = waits_of(gpu, name, **SHAPES[shape])
    assert not noted, "\n".join(waits_by_place(noted))


@pytest.mark.parametrize("name", ["kd", pytest.param("adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{"hidden": True}, {"micro_batch_size": 4}], ids=["hidden", "micro-batches"])
def test_hidden_states_and_micro_batches_add_no_wait(gpu, name, options):
    noted = waits_of(gpu, name, lengths=RAGGED, **options)
    assert not noted, "\n".join(waits_by_place(noted))


@pytest.mark.parametrize(
    ("name", "options"),
    mostly_slow(
        itertools.product(METHODS, ({}, {"packed": True})),
        ("kd", {}),
        ("adamw", {}),
        ("student_first adamw", {}),
    ),
)
def test_transfer_rows_add_no_wait(gpu, name, options):
    """Which rows have labels is in the batch's weights: nobody asks the device for them."""
    noted = waits_of(gpu, name, lengths=RAGGED, mixed=True, **options)
    assert not noted, "\n".join(waits_by_place(noted))


def test_a_wait_is_noted_where_it_happens(gpu):
    tensor = torch.ones(3).to("cuda")
    gpu.forget()
    assert float(tensor.sum()) == 3.0
    (wait,) = gpu.waits
    assert "_local_scalar_dense" in wait.what
    assert "test_waits.py" in wait.caller


@pytest.mark.parametrize(("hook", "places"), [("on_step_end", ["cuda"] * 3), ("on_epoch_end", [])])
def test_a_run_waits_for_its_device_where_a_callback_may_act_on_each_step(gpu, tmp_path, monkeypatch, hook, places):
    waited = []
    monkeypatch.setattr("reptile_distil.training.loop.wait_for", waited.append)
    options = (f"runs_dir={tmp_path}", "method=finetune", "device=cuda", "train.max_steps=3", "train.epochs=1")
    Experiment.from_yaml(TINY, *options, callbacks=[SimpleNamespace(**{hook: lambda *_: None})]).fit()
    assert waited == places
