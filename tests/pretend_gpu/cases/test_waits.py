"""How often a step waits for the device."""

import pytest
import torch

from tests.pretend_gpu.cases.steps import FULL, METHODS, RAGGED, build, given, take
from tests.pretend_gpu.device import waits_by_place

FORWARD_PASSES = {"finetune": 1, "kd": 2, "adamw": 3, "interpolate": 3, "metadistil": 5}
"""In a step; 2 where the student goes first."""

SHAPES = {
    "ragged": {"lengths": RAGGED},
    "full": {"lengths": FULL},
    "ragged bf16": {"lengths": RAGGED, "autocast_dtype": torch.bfloat16},
    "packed": {"lengths": RAGGED, "packed": True},
    "packed bf16": {"lengths": RAGGED, "packed": True, "autocast_dtype": torch.bfloat16},
}


def waits_of(gpu, name, *, lengths, **options):
    """Those of the second step: in the first, optimizers make their state."""
    method, batches = build(name, **options), given(name, lengths)
    for _ in range(2):
        gpu.forget()
        logs = take(method, batches)
    noted = list(gpu.waits)
    assert all(value.held.isfinite() for value in logs.values())
    return noted


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_waits_exactly_as_often_as_it_must(gpu, name, shape):
    """Once in each forward pass to see whether there is padding; packed, twice for where the rows are."""
    noted = waits_of(gpu, name, **SHAPES[shape])
    expected = 0
    assert len(noted) == expected, "\n".join(waits_by_place(noted))


@pytest.mark.parametrize("name", ["kd", "adamw", "student_first adamw"])
@pytest.mark.parametrize("options", [{"hidden": True}, {"micro_batch_size": 4}], ids=["hidden", "micro-batches"])
def test_hidden_states_and_micro_batches_add_no_wait_of_their_own(gpu, name, options):
    noted = waits_of(gpu, name, lengths=RAGGED, **options)
    assert not [wait for wait in noted if "masking_utils" not in wait.caller], "\n".join(waits_by_place(noted))


def test_a_wait_is_noted_where_it_happens(gpu):
    tensor = torch.ones(3).to("cuda")
    gpu.forget()
    assert float(tensor.sum()) == 3.0
    (wait,) = gpu.waits
    assert "_local_scalar_dense" in wait.what
    assert "test_waits.py" in wait.caller
