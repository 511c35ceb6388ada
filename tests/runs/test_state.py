"""What is saved of models, optimizers and random numbers is set again bit for bit, or refused by name."""

import copy
import json

import pytest
import torch
from torch import nn

from reptile_distil.errors import RunError
from reptile_distil.runs.state import (
    check_same_kind,
    load_module,
    load_optimizer,
    load_random,
    module_tensors,
    optimizer_tensors,
    optimizer_values,
    random_tensors,
)


class Tied(nn.Module):
    """Two layers that share a weight, a buffer that is saved, and one that is not."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("positions", torch.arange(3), persistent=False)

    def forward(self, x):
        return self.second(self.first(x))


def trained(optimizer_class=torch.optim.AdamW, *, seed=0, num_steps=3, **options):
    """A model and its optimizer after some steps."""
    torch.manual_seed(seed)
    model = Tied()
    optimizer = optimizer_class(model.parameters(), **{"lr": 0.1, **options})
    for _ in range(num_steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.tensor([[1.0, -2.0]])).square().sum().backward()
    optimizer.step()


def through_json(value):
    return json.loads(json.dumps(value))


def test_a_model_is_set_as_it_was_and_tensors_that_are_shared_are_saved_once():
    model, _ = trained()
    model.mean += 2.0
    saved = {name: tensor.clone() for name, tensor in module_tensors(model).items()}
    assert saved.keys() == {"first.weight", "first.bias", "second.bias", "mean"}
    other, _ = trained(seed=1)
    load_module(other, saved, "student")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())
    assert other.second.weight is other.first.weight


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_an_optimizer_goes_on_bit_for_bit(optimizer_class, options):
    model, optimizer = trained(optimizer_class, **options)
    optimizer.param_groups[0]["lr"] = 0.03
    again, new = copy.deepcopy(model), None
    new = optimizer_class(again.parameters(), **{"lr": 0.1, **options})
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    load_optimizer(new, tensors, through_json(optimizer_values(optimizer)), "optimizer")
    assert new.param_groups[0].get("betas") == optimizer.param_groups[0].get("betas")  # a tuple, not a list
    for _ in range(3):
        step(model, optimizer)
        step(again, new)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_optimizer_saved_before_its_first_step_has_no_state():
    _, optimizer = trained(num_steps=0)
    assert optimizer_tensors(optimizer) == {}
    load_optimizer(optimizer, {}, through_json(optimizer_values(optimizer)), "optimizer")


def test_random_numbers_go_on_where_they_stopped():
    torch.manual_seed(3)
    torch.randn(7)
    saved = {name: tensor.clone() for name, tensor in random_tensors("cpu").items()}
    expected = torch.randn(5), nn.functional.dropout(torch.ones(50))
    torch.manual_seed(9)
    load_random(saved, "cpu")
    assert torch.equal(torch.randn(5), expected[0])
    assert torch.equal(nn.functional.dropout(torch.ones(50)), expected[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("mean"), "student: mean is not there in the checkpoint, but float32 (3,) in this run"),
        (lambda saved: saved.update(extra=torch.ones(1)), "student: extra is float32 (1,) in the checkpoint, but not"),
        (lambda saved: saved.update(mean=torch.ones(4)), "student: mean is float32 (4,) in the checkpoint, but"),
        (lambda saved: saved.update(mean=torch.ones(3).double()), "student: mean is float64 (3,) in the checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_none_is_taken_over(change, message):
    model, _ = trained()
    saved = {name: tensor + 1 for name, tensor in module_tensors(model).items()}
    change(saved)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError) as error:
        load_module(model, saved, "student")
    assert message in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"9.exp_avg": torch.ones(2)}, "no parameter is called '9'"),
        ({"x.exp_avg": torch.ones(2)}, "no parameter is called 'x'"),
        ({"0.exp_avg": torch.ones(3, 3)}, "0.exp_avg is float32 (3, 3), which fits no parameter"),
        ({"0.exp_avg": torch.ones(2, 2).long()}, "0.exp_avg is int64 (2, 2), which fits no parameter"),
        ({"0.other": torch.ones(2, 2)}, "some parameters lack a part of their state"),
    ],
)
def test_an_optimizers_state_that_does_not_fit_is_refused(change, message):
    _, optimizer = trained()
    saved = {**optimizer_tensors(optimizer), **change}
    with pytest.raises(RunError) as error:
        load_optimizer(optimizer, saved, optimizer_values(optimizer), "optimizer lr")
    assert str(error.value) == f"optimizer lr in the checkpoint: {message}"


@pytest.mark.parametrize(
    "saved", [{"a": [1.0, 2]}, {"a": [1.0]}, {"a": "x"}, {"b": [1.0, 2.0]}, {"a": [1.0, 2.0], "b": 1}, None, []]
)
def test_values_of_another_kind_are_refused(saved):
    check_same_kind({"a": [3.0, 4.0]}, {"a": (1.0, 2.0)}, "schedule")
    with pytest.raises(RunError, match=r"schedule in the checkpoint: .* is not of the kind of"):
        check_same_kind(saved, {"a": (1.0, 2.0)}, "schedule")
