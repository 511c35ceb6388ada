"""The pretended GPU itself: what it refuses, and what it computes."""

import copy

import pytest
import torch

from tests.helpers.models import batch
from tests.pretend_gpu.cases.steps import build
from tests.pretend_gpu.device import PretendedTensor, plain
from tests.training.test_cuda_graphs import build as build_on
from tests.training.test_cuda_graphs import some_batches, take_steps


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_a_cpu_tensor_in_a_step_is_refused(gpu, name):
    method, there = build("kd"), {key: tensor.to("cuda") for key, tensor in batch().items()}
    method.step(there)
    with pytest.raises(RuntimeError, match=r"same device|device type"):
        method.step({**there, name: batch()[name]})


def test_what_waits_while_a_graph_is_recorded_is_refused(gpu):
    tensor = torch.ones(3).to("cuda")
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        float(tensor.sum())


def test_a_graph_repeats_what_was_recorded_with_numbers_as_they_were(gpu):
    number, tensor, total = 2.0, torch.ones(3).to("cuda"), torch.zeros(3).to("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total.add_(tensor * number)
    assert total.tolist() == [0.0] * 3
    number = 5.0
    tensor.fill_(10.0)
    graph.replay()
    graph.replay()
    assert total.tolist() == [40.0] * 3


def test_random_numbers_of_the_device_are_its_own(gpu):
    torch.manual_seed(3)
    on_device, on_cpu = torch.rand(4, device="cuda").tolist(), torch.rand(4).tolist()
    torch.manual_seed(3)
    assert torch.rand(4).tolist() == on_cpu
    assert torch.rand(4, device="cuda").tolist() == on_device
    assert isinstance(torch.rand(2, device="cuda"), PretendedTensor)


def test_a_copy_of_a_parameter_is_a_parameter(gpu):
    layer = torch.nn.Linear(2, 2).to("cuda")
    again = copy.deepcopy(layer)
    assert [parameter.requires_grad for parameter in again.parameters()] == [True, True]
    with torch.no_grad():
        again.weight.zero_()
    assert layer.weight.held.abs().sum() > 0


def test_launches_casts_and_bytes_are_counted(gpu):
    tensors = [torch.ones(1000).to("cuda") for _ in range(120)]
    gpu.forget()
    torch._foreach_mul_(tensors, 2.0)
    assert gpu.counts.num_launches == 2  # of at most 110 tensors each
    assert gpu.counts.num_bytes == 120 * 1000 * 4
    tensors[0].to(torch.bfloat16)
    assert (gpu.counts.num_launches, gpu.counts.num_casts) == (3, 1)
    tensors[0].view(10, 100)
    assert gpu.counts.num_launches == 3


@pytest.mark.parametrize("name", ["kd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "interpolate"))])
def test_steps_on_the_device_equal_steps_on_the_cpu(gpu, name):
    results = []
    for device in ("cuda", "cpu"):
        method, optimizers, models = build_on(name, device=device, dtype=torch.float64)
        take_steps(method, optimizers, some_batches(device))
        results.append([plain(parameter.detach()) for model in models.values() for parameter in model.parameters()])
    for there, here in zip(*results, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
