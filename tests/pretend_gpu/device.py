"""A pretended CUDA device: tensors that say `cuda:0`, hold their values on the CPU, and mind a GPU's rules.

What it minds:

- No operation mixes a tensor on the CPU, but a scalar, with one on the device.
- What waits for the device is noted with where it happens, or is an error: under
  `torch.cuda.set_sync_debug_mode("error")`, and while a graph is recorded.
- A graph repeats the recorded operations on the recorded tensors, with numbers and CPU scalars as they were.
- Random numbers on the device have a state of their own.
- Operations are counted: about how many kernels they launch, casts among them, and the bytes that they read and write.

What it cannot: kernels' own rules and rounding, streams and races, memory, speed.
"""

from __future__ import annotations

import itertools
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.attention.varlen  # its operations are known from here on
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)

WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
"""Operations whose result, or its shape, the CPU must know."""

INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}

ALLOCATING = ("aten.empty", "aten.new_empty", "aten.detach", "aten.resize_")
"""What launches nothing, beside views."""

CHUNK = 2**16
"""Elements that one block of a multi-tensor kernel takes. Source: ATen/native/cuda/MultiTensorApply.cuh, as below."""
MOST_BLOCKS = 320
MOST_TENSORS = (110, 64, 48, 36, 30)
"""In one launch, by the number of lists."""


OWN_FILES = ("/pretend_gpu/device.py", "/pretend_gpu/torch_cuda.py")
"""These are never where something waits."""


class Wait(NamedTuple):
    """What waited for the device, and where: the last line of the project's own, and the last outside PyTorch."""

    what: str
    project: str
    caller: str


@dataclass
class Counts:
    """What was done on the device."""

    launches: Counter[str] = field(default_factory=Counter)
    """By operation, about how many kernels it launches."""
    num_casts: int = 0
    """Launches that only change the type of numbers."""
    num_bytes: int = 0
    """Read and written, as if each operation read its inputs and wrote its outputs once."""

    @property
    def num_launches(self) -> int:
        """All kernels."""
        return self.launches.total()


@dataclass
class PretendedGPU:
    """The state of the one device there is."""

    random_state: Tensor = field(default_factory=lambda: seed_state(0))
    waits: list[Wait] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    sync_debug_mode: str | int = "default"
    recording: Any = None
    """The graph under way."""
    fused_attention: bool = False
    """Whether attention is one kernel, as in counts, which then drops nothing; otherwise it is written out."""

    def forget(self) -> None:
        """Starts to note and to count anew."""
        self.waits.clear()
        self.counts = Counts()

    def wait(self, what: str) -> None:
        """Notes a wait. Raises `RuntimeError` where there must be none."""
        waited = Wait(what, *_where())
        self.waits.append(waited)
        if self.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing {waited}")
        if self.sync_debug_mode in ("error", 2):
            raise RuntimeError(f"called a synchronizing CUDA operation {waited}")


def seed_state(seed: int) -> Tensor:
    """The state of random numbers that begin with this seed."""
    return torch.Generator().manual_seed(seed).get_state()


class PretendedTensor(torch.Tensor):
    """A tensor on the device; `held` has its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=False,
        )
        tensor.held = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"PretendedTensor({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = PretendedTensor(self.held.clone())
            is_parameter = getattr(self, "_is_param", False)
            copied = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def tolist(self) -> Any:
        """The values as numbers, which waits for them."""
        GPU.wait("tolist")
        return self.held.tolist()


class Dispatch(TorchDispatchMode):
    """Sees what makes tensors on the device out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


GPU = PretendedGPU()


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operation, wherever its tensors are."""
    flat, _ = tree_flatten((args, kwargs))
    if func is aten.lift_fresh.default:
        return args[0]
    if func is aten._to_copy.default:
        return _convert(args[0], kwargs)
    if func is aten._pin_memory.default:
        return pinned(args[0])
    is_here = any(isinstance(value, PretendedTensor) for value in flat)
    if not is_here and not _is_cuda(kwargs.get("device")):
        return func(*args, **kwargs)
    if func is aten.copy_.default and isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor):
        return _copy_between(*args, **kwargs)
    if func in _ATTENTION:
        return _ATTENTION[func](*args, **kwargs)
    _check(func, args, flat)
    return _compute(func, args, kwargs)


def pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, from which nothing waits for a copy to the device."""
    copy = tensor.clone()
    copy._is_pinned = True  # type: ignore[attr-defined]
    return copy


def with_device_random_numbers(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operation, on the values; what it draws comes from the device's random numbers."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return func(*args, **kwargs)
    of_cpu = torch.get_rng_state()
    torch.set_rng_state(GPU.random_state)
    try:
        return func(*args, **kwargs)
    finally:
        GPU.random_state = torch.get_rng_state()
        torch.set_rng_state(of_cpu)


def _convert(tensor: Tensor, options: dict[str, Any]) -> Tensor:
    """`tensor.to(...)`: another device or another type."""
    here, device = isinstance(tensor, PretendedTensor), options.get("device")
    there = here if device is None else _is_cuda(device)
    if here != there:
        waits_for_nothing = there and getattr(tensor, "_is_pinned", False) and options.get("non_blocking")
        if GPU.recording is not None or not waits_for_nothing:
            GPU.wait(f"copy {'to' if there else 'from'} the device, {tuple(tensor.shape)} {tensor.dtype}")
    options = {name: value for name, value in options.items() if name not in ("device", "non_blocking", "pin_memory")}
    converted: Tensor = aten._to_copy.default(plain(tensor), **options)
    if not there:
        return converted
    if GPU.recording is not None:
        GPU.recording.add(aten._to_copy.default, (plain(tensor),), options, converted)
    _count(aten._to_copy.default, [plain(tensor)], converted)
    return PretendedTensor(converted)


def _copy_between(to: Tensor, tensor: Tensor, non_blocking: bool = False) -> Tensor:
    """`to.copy_(tensor)` where one of the two is on the device."""
    from_pinned = isinstance(to, PretendedTensor) and getattr(tensor, "_is_pinned", False)
    if GPU.recording is not None or not (from_pinned and non_blocking):
        GPU.wait(f"copy_ between devices, {tuple(tensor.shape)}")
    plain(to).copy_(plain(tensor))
    return to


def _check(func: Any, args: Sequence[Any], flat: Sequence[Any]) -> None:
    """Notes a wait; raises `RuntimeError` where tensors of two devices are mixed."""
    if func in WAITING:
        GPU.wait(str(func))
    for value in flat:
        if isinstance(value, torch.Tensor) and not isinstance(value, PretendedTensor):
            if func in INDEXING:
                GPU.wait(f"{func}: an index on the CPU")
            elif value.ndim:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"{func} {tuple(value.shape)} {_where()}"
                )
    if func in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        GPU.wait(f"{func}: a boolean index")


def _compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    given = {**kwargs, "device": "cpu"} if _is_cuda(kwargs.get("device")) else kwargs
    given = {name: value for name, value in given.items() if name != "pin_memory"}
    flat, spec = tree_flatten((args, given))
    if GPU.recording is not None:  # scalars on the CPU are read while a graph is recorded
        flat = [value.clone() if type(value) is torch.Tensor else value for value in flat]
    values, named = tree_unflatten([plain(value) for value in flat], spec)
    is_view, writes = _is_view(func), func._schema.is_mutable
    if GPU.recording is not None and writes:
        GPU.recording.add(func, values, named, None)
        _count(func, values, None)
        return _written(func, args, kwargs)
    before = GPU.random_state
    result = with_device_random_numbers(func, values, named)
    if GPU.recording is not None and not is_view:
        GPU.random_state = before
        GPU.recording.add(func, values, named, result)
    if not is_view:
        _count(func, values, result)
    if writes and not func._schema.returns:
        return None
    if func in (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default):
        return result
    wrapped = tree_map(_wrap, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if writes or is_view else wrapped


def _count(func: Any, values: Any, result: Any) -> None:
    name = str(func)
    if name.startswith(ALLOCATING):
        return
    tensors = [value for value in tree_flatten((values, result))[0] if isinstance(value, torch.Tensor)]
    number = _launches(name, values)
    GPU.counts.launches[name] += number
    GPU.counts.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if func in (aten._to_copy.default, aten.copy_.default) or name.startswith("aten._foreach_copy"):
        types = {tensor.dtype for tensor in tensors}
        GPU.counts.num_casts += number if len(types) > 1 else 0


def _launches(name: str, values: Any) -> int:
    """One, or for operations on lists of tensors as many as those fill."""
    lists = [value for value in values if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
    if not lists or not name.startswith(("aten._foreach", "aten._fused")):
        return 1
    most = MOST_TENSORS[min(len(lists), len(MOST_TENSORS)) - 1]
    blocks = sum(-(-tensor.numel() // CHUNK) for tensor in lists[0])
    return max(-(-len(lists[0]) // most), -(-blocks // MOST_BLOCKS))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation that writes returns: its own arguments."""
    places = {}
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            places[tuple(argument.alias_info.before_set)] = value
    returned = [places[tuple(value.alias_info.before_set)] for value in func._schema.returns]
    if not returned:
        return None
    return returned[0] if len(returned) == 1 else tuple(returned)


def _attend(*args: Any, scale: float | None = None, **_: Any) -> Any:
    """Memory-efficient attention (B, H, L, D), one kernel; here it drops nothing."""
    inputs = [plain(value) for value in args[:4]]
    with torch.no_grad():
        states = torch.nn.functional.scaled_dot_product_attention(*inputs, scale=scale)
    states = states.transpose(1, 2).contiguous().transpose(1, 2)
    _count(aten._scaled_dot_product_efficient_attention.default, inputs, states)
    nothing = torch.zeros((), dtype=torch.long)
    return tuple(map(_wrap, (states, torch.zeros(inputs[0].shape[:3]), nothing, nothing.clone())))


def _attend_backward(*args: Any, **_: Any) -> Any:
    gradient, *inputs = (plain(value) for value in args[:5])
    gradients = _attention_gradients(gradient, *inputs)
    _count(aten._scaled_dot_product_efficient_attention_backward.default, [gradient, *inputs], gradients)
    return (*map(_wrap, gradients), None)


def _attention_gradients(of_states: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Any:
    """Written out: autograd is off where this is called. (..., L, D) each."""
    query, key, value, of_states, dtype = *(x.float() for x in (query, key, value, of_states)), query.dtype
    scale = query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    weights = (scores if bias is None else scores + bias.float()).softmax(dim=-1)
    of_weights = of_states @ value.mT
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
    return [x.to(dtype) for x in (of_scores @ key, of_scores.mT @ query, weights.mT @ of_states)]


def _attend_in_rows(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *_: Any) -> Any:
    """The kernel for rows of unequal length, end to end (T, H, D)."""
    inputs = [plain(tensor) for tensor in (query, key, value)]
    with torch.no_grad():
        states = _each_row(inputs, plain(bounds))
    _count("torch_attn._varlen_attn", inputs, states)
    return tuple(map(_wrap, (states, torch.zeros(states.shape[1::-1]), torch.zeros(2, dtype=torch.int64))))


def _attend_in_rows_backward(gradient: Tensor, *args: Any) -> Any:
    inputs, bounds = [plain(tensor) for tensor in args[:3]], plain(args[5])
    rows = []
    for start, end in itertools.pairwise(bounds.tolist()):
        parts = [x[start:end].transpose(0, 1) for x in (plain(gradient), *inputs)]
        rows.append([x.transpose(0, 1) for x in _attention_gradients(*parts, None)])
    gradients = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    _count("torch_attn._varlen_attn_backward", inputs, gradients)
    return tuple(map(_wrap, gradients))


def _each_row(inputs: Sequence[Tensor], bounds: Tensor) -> Tensor:
    rows = []
    for start, end in itertools.pairwise(bounds.tolist()):
        query, key, value = (tensor[start:end].transpose(0, 1) for tensor in inputs)
        rows.append(torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1))
    return torch.cat(rows)


_ATTENTION = {
    aten._scaled_dot_product_efficient_attention.default: _attend,
    aten._scaled_dot_product_efficient_attention_backward.default: _attend_backward,
    torch.ops.torch_attn._varlen_attn.default: _attend_in_rows,
    torch.ops.torch_attn._varlen_attn_backward.default: _attend_in_rows_backward,
}


def _is_view(func: Any) -> bool:
    borrows = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
    return borrows and any(value.alias_info is not None for value in func._schema.returns)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def plain(value: Any) -> Any:
    """The values of a tensor on the device; anything else itself."""
    return value.held if isinstance(value, PretendedTensor) else value


def _wrap(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendedTensor) else value


def _where() -> tuple[str, str]:
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.endswith(OWN_FILES)]
    of_project = [f for f in frames if "/reptile_distil/" in f.filename and "site-packages" not in f.filename]
    outside_torch = [frame for frame in frames if "/torch/" not in frame.filename]
    return _last(of_project), _last(outside_torch)


def _last(frames: Sequence[Any]) -> str:
    return f"{frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}" if frames else "?"


def waits_by_place(waits: Sequence[Wait]) -> Iterator[str]:
    """One line for each place that waited, with how often it did."""
    for wait, number in Counter(waits).most_common():
        yield f"{number} x {wait.what} at {wait.project}, {wait.caller}"
