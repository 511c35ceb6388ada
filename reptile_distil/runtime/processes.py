"""The processes of one run: which of them this is, and what they exchange. One process alone exchanges nothing.

torchrun or `accelerate launch` starts them; accelerate joins them. Each sees the same batches, computes its own rows
of each, and sums gradients with the others, so that every process takes the same steps. No DistributedDataParallel is
wrapped around a model: its reducer expects one backward pass for each forward pass, and a Reptile step may take two.

A model may be cut over the processes (FSDP2): each then holds its part of every weight, gradient and optimizer state.
Equation 2 subtracts weight by weight, so it works part by part: paired weights have equal shapes and are cut alike.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reptile_distil.errors import ConfigError, ReptileDistilError
from reptile_distil.runtime.launcher import launched_count, launched_several

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
TIMEOUT = timedelta(minutes=15)
"""A process that waits this long for another gives up. Reading and tokenising data may take minutes."""

BUCKET_SIZE = 2**23
"""Elements that are summed at once: few enough to cost little memory, enough to keep a network busy."""


@dataclass(frozen=True)
class Processes:
    """One process among those of the run: number `rank` of `count`, counted from 0."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, the same bits on each of them."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each parameter's `.grad` by its sum over the processes; of a sharded one, this process's part."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.sum_([gradient for gradient in gradients if not is_sharded(gradient)])
        # The backward pass of a sharded model has averaged its gradients over the processes already.
        for gradient in gradients:
            if is_sharded(gradient):
                gradient.to_local().mul_(self.count)

    def on_main(self, decide: Callable[[], T]) -> T:
        """Calls `decide` on the main process alone; what it returns, or raises, on all of them."""
        if self.count == 1:
            return decide()
        outcome: list[T | Exception | None] = [None, None]
        if self.is_main:
            try:
                outcome[0] = decide()
            except (ReptileDistilError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[1], Exception):
            raise outcome[1]
        return outcome[0]  # type: ignore[return-value]  # what decide() returned

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each process's tensor, by rank; all must have the same shape and lie on the device that was joined with."""
        if self.count == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(gathered, tensor)
        return gathered

    def largest(self, number: int, device: str) -> int:
        """The largest of the processes' numbers. This waits for the device."""
        if self.count == 1:
            return number
        return max(int(other) for other in self.gather(torch.tensor([number], device=device)))

    def seed_dropout(self, seed: int) -> None:
        """Starts this process's random numbers: its own, since it masks other rows; a lone process's are `seed`'s."""
        torch.manual_seed(seed + self.rank)

    def share_weights(self, model: nn.Module, device: str) -> None:
        """Gives each process the main process's weights and buffers, over `device`; before the model is sharded."""
        if self.count == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            shared = tensor.detach().to(device)
            dist.broadcast(shared, src=0)
            tensor.detach().copy_(shared)


ALONE = Processes()
"""The one process of a run that is not one of several."""


def start_processes(device: str) -> Processes:
    """Joins the processes that torchrun or `accelerate launch` has started, each with its own device of that kind.

    Without a launcher, or with one process, nothing is started. Raises `ConfigError` where it cannot be done.
    """
    if not launched_several():
        return ALONE
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(
                f"WORLD_SIZE is {launched_count()}, but {name} is not set: start several processes with torchrun or "
                "accelerate launch, and one with WORLD_SIZE unset"
            )
    if device == "mps":
        raise ConfigError("device = 'mps' takes one process: start it with python, or use device=cpu")
    # A launcher may show each process a GPU of its own alone, as Slurm's --gpus-per-task=1 does.
    sees_its_own = torch.cuda.device_count() == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if device == "cuda" and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count() and not sees_its_own:
        raise ConfigError(_too_few_gpus())
    from accelerate import PartialState  # takes a while, which one process need not wait for

    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    if device == "cuda" and sees_its_own:
        _check_no_gpu_is_shared()
    return Processes(rank=state.process_index, count=state.num_processes)


def _check_no_gpu_is_shared() -> None:
    """Raises `ConfigError`, in every process, where two of them see the same GPU as their only one."""
    # Over the CPU: two processes on one GPU could not talk over it.
    group = dist.new_group(backend="gloo")
    gpus: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gpus, str(torch.cuda.get_device_properties(0).uuid), group=group)
    dist.destroy_process_group(group)
    if len(set(gpus)) < len(gpus):
        stop_processes()
        raise ConfigError(_too_few_gpus())


def _too_few_gpus() -> str:
    return f"more processes than GPUs: PyTorch finds {torch.cuda.device_count()} here; start one process for each"


def stop_processes() -> None:
    """Leaves the others at the end of a run, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process has ended or does not answer."""
    return isinstance(error, dist.DistError) or (dist.is_initialized() and "gloo" in str(error))


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds a part of the tensor alone."""
    # Where nobody has imported the module, which takes a second, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, for which every process must ask; any other tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def cut_like(live: Tensor, tensor: Tensor) -> Tensor:
    """Of a whole tensor, this process's part where `live` is sharded, for which all must ask; else the tensor."""
    if not is_sharded(live):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(live.device), live.device_mesh, live.placements)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, cut into lists of one dtype and at most `BUCKET_SIZE` elements (or one tensor)."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET_SIZE or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def shard_model(model: nn.Module, device: str, layers: Sequence[nn.Module] = ()) -> None:
    """Cuts the model's weights over all processes, in place; each process's part lies on its device.

    A forward pass gathers the weights of one of `layers` after another, and drops them again, so that a model larger
    than a device can be trained on several.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for module in (*layers, model):
        # Without it PyTorch keeps the outermost weights whole until the next backward pass, which a teacher never has:
        # equation 2 would move the parts, and the next forward pass would still use the old whole.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole_copy(model: Any) -> Any:
    """An ordinary model with all weights of a sharded classifier, on the CPU of the main process; None elsewhere.

    Every process must call it.
    """
    import transformers
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() != 0:
        return None
    with torch.device("meta"):  # allocates nothing: every weight is put in its place below
        copy = transformers.AutoModelForSequenceClassification.from_config(model.config)
    copy.load_state_dict(state, assign=True)
    return copy
