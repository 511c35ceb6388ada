"""`torch.cuda` of the pretended GPU: from `install` on, the process has one. It cannot be undone."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_flatten
from transformers import BertForSequenceClassification  # noqa: F401 (looks at devices when it is imported)

from tests.pretend_gpu.device import (
    DEVICE,
    GPU,
    Dispatch,
    PretendedTensor,
    pinned,
    plain,
    seed_state,
    with_device_random_numbers,
)


class CUDAGraph:
    """Recorded operations, with the tensors that they read and write."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One more operation; `result` is where its result lies, None for one that writes to its arguments."""
        self.calls.append((func, args, kwargs, result))

    def replay(self) -> None:
        """Does all of it again: on the same tensors, with new random numbers."""
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, result in self.calls:
                again = with_device_random_numbers(func, args, kwargs)
                if result is None:
                    continue
                for place, value in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(place, Tensor) and place.numel():
                        place.copy_(value)


@contextlib.contextmanager
def graph(cuda_graph: CUDAGraph, *_: Any, **__: Any) -> Iterator[None]:
    """Records what is done inside, as `torch.cuda.graph`; what writes is not done."""
    gc.collect()
    assert GPU.recording is None
    GPU.recording = cuda_graph
    try:
        yield
    finally:
        GPU.recording = None


class Stream:
    """A stream: here all work is done at once, in order."""

    device = DEVICE

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Stream) -> None:
        """The device waits, not the CPU."""

    def synchronize(self) -> None:
        """The CPU waits."""
        GPU.wait("stream.synchronize")


MAIN_STREAM = Stream()


def manual_seed(seed: int) -> None:
    """Random numbers on the device begin with this seed."""
    GPU.random_state = seed_state(int(seed))


def set_rng_state(state: Tensor, device: Any = "cuda") -> None:
    """Random numbers on the device go on from there."""
    GPU.random_state = state.clone()


def set_sync_debug_mode(mode: str | int) -> None:
    """As PyTorch's; the first call of a process warns, and has no effect where warnings are errors."""
    GPU.sync_debug_mode = mode
    if not _warned:
        _warned.append(True)
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations",
            UserWarning,
            stacklevel=2,
        )


_warned: list[bool] = []


_attend = torch.nn.functional.scaled_dot_product_attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """PyTorch's, with one kernel where the device is to have it, and with what PyTorch does to a mask before.

    Source: aten/src/ATen/native/transformers/attention.cpp, `convert_boolean_attn_mask` and `pad_bias`.
    """
    if not GPU.fused_attention or not isinstance(query, PretendedTensor):
        return _attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            nothing = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = nothing.masked_fill(attn_mask.logical_not(), float("-inf"))
        attn_mask = attn_mask.to(query.dtype)
        if any(stride % 8 for stride in attn_mask.stride()[:-1]):
            width = attn_mask.shape[-1]
            attn_mask = torch.nn.functional.pad(attn_mask, (0, -width % 8))[..., :width]
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    states: Tensor = kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return states


def install() -> None:
    """From here on this process has the GPU."""
    names: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended GPU",
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 1,
        "max_memory_allocated": lambda device=None: 1,
        "max_memory_reserved": lambda device=None: 2,
        "reset_peak_memory_stats": lambda device=None: None,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed,
        "get_rng_state": lambda device="cuda": GPU.random_state.clone(),
        "set_rng_state": set_rng_state,
        "Stream": Stream,
        "current_stream": lambda device=None: MAIN_STREAM,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "is_current_stream_capturing": lambda: GPU.recording is not None,
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: GPU.sync_debug_mode,
    }
    for name, value in names.items():
        setattr(torch.cuda, name, value)
    torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch._C._set_only_lift_cpu_tensors(True)
    torch.Tensor.pin_memory = lambda self, device=None: pinned(self)  # type: ignore[method-assign,assignment]
    torch.nn.functional.scaled_dot_product_attention = attend
    _let_lists_of_tensors_be()
    _let_models_be_saved()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Dispatch().__enter__()


def _let_lists_of_tensors_be() -> None:
    """Operations on lists take the pretended tensors, where PyTorch asks for tensors of exactly its own type."""
    utils = sys.modules["torch.utils._foreach_utils"]

    def has_foreach_support(tensors: Any, device: torch.device) -> bool:
        known = (torch.Tensor, PretendedTensor, type(None))
        return device.type in utils._get_foreach_kernels_supported_devices() and all(type(t) in known for t in tensors)

    utils._has_foreach_support = has_foreach_support
    torch.nn.utils.clip_grad._has_foreach_support = has_foreach_support
    sys.modules["torch.optim.optimizer"]._foreach_supported_types.append(PretendedTensor)


def _let_models_be_saved() -> None:
    """A pretended tensor has no address of its own, by which shared weights are found."""
    save = transformers.PreTrainedModel.save_pretrained

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = {name: plain(tensor) for name, tensor in self.state_dict().items()}
        return save(self, *args, **{"state_dict": state, **kwargs})

    transformers.PreTrainedModel.save_pretrained = save_pretrained
