"""How and where forward passes are computed: device, number format, attention, compiler.

What cannot work on a device is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import torch._functorch.config as compiled_autograd_config
from torch import nn

from reptile_distil.errors import ConfigError
from reptile_distil.runtime.measuring import best_seconds

logger = logging.getLogger(__name__)
Precision = Literal["fp32", "tf32", "bf16"]
SLOW_BF16 = 1.5
"""Bfloat16 that takes this many times as long as float32 is worth a warning."""


def choose_precision(wanted: Literal["auto"] | Precision, device: str) -> Precision:
    """The number format of matrix products; `auto` is bf16 on a GPU that computes in it natively, else fp32.

    Raises `ConfigError` for a format that the device does not have. A CPU computes in bfloat16 whether it can do so
    fast or not, so there a slow one is only warned of.
    """
    if wanted == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if wanted == "tf32" and (device != "cuda" or torch.cuda.get_device_capability() < (8, 0)):
        raise ConfigError(
            f"precision = 'tf32': device {device} has no TF32, which needs an NVIDIA GPU of 2020 or later; use fp32"
        )
    if wanted == "bf16" and device == "cpu" and (slowdown := bf16_slowdown()) > SLOW_BF16:
        logger.warning(
            "precision: bf16 takes %.0f times as long as fp32 in a matrix product on this CPU: use precision=fp32",
            slowdown,
        )
    return wanted


def use_precision(precision: Precision) -> None:
    """Switches TF32 on for float32 matrix products of the whole process, or off."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


@contextlib.contextmanager
def computing(precision: Precision, num_threads: int | None) -> Iterator[None]:
    """Sets number format and threads of the whole process inside, and restores them: one run at a time."""
    matmul_precision, threads_before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    use_precision(precision)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        torch.set_num_threads(threads_before)


def bf16_slowdown() -> float:
    """Time of a small matrix product on the CPU in bfloat16 over that in float32, each the best of three."""
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(2, 256, 384, dtype=dtype).unbind()
    return best_seconds(partial(torch.matmul, a, b.T), "cpu", repeats=3)


def set_attention(model: Any, implementation: Literal["auto", "sdpa", "eager"]) -> None:
    """Chooses PyTorch's fused attention or attention written out; `auto` leaves the architecture's default.

    Raises `ConfigError` where the architecture does not have it.
    """
    if implementation == "auto":
        return
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, AttributeError):
        raise ConfigError(
            f"compute.attention = {implementation!r}: {type(model).__name__} does not have it; use auto"
        ) from None
    if model.config._attn_implementation != implementation:
        raise ConfigError(f"compute.attention = {implementation!r}: {type(model).__name__} does not have it; use auto")


def compile_forward(model: nn.Module, device: str) -> None:
    """Compiles the model's forward and backward pass, in place, when it is first called.

    For any batch size and length: a new length takes no new compilation. Weights, names and saved files stay the same.
    Raises `ConfigError` where there is no compiler.
    """
    _check_compiler(device)
    # Reptile uses a graph twice, so none may lend its memory to its first backward pass; a graph that was compiled for
    # another model of the same shape is used again for the student.
    compiled_autograd_config.donated_buffer = False
    model.compile(dynamic=True)


def without_compiling() -> contextlib.AbstractContextManager[Any]:
    """Inside, a compiled model that meets what it was not compiled for raises `RuntimeError`, and compiles nothing."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled; the compiler takes a second to import
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("fail_on_recompile")
    return stance


def _check_compiler(device: str) -> None:
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ConfigError("compute.compile = true: no C++ compiler found; install g++, or use false") from None
    elif device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError("compute.compile = true: Triton is not there for this GPU; install it, or use false")
    else:
        raise ConfigError(f"compute.compile = true: not supported on device {device}; use false")


def choose_device(wanted: str) -> str:
    """The device to compute on. Raises `ConfigError` where it is not available."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return "cpu"  # accelerate launch --cpu
    if wanted == "auto":
        return next(device for device in there if there[device])
    if not there[wanted]:
        raise ConfigError(f"device = {wanted!r}: PyTorch finds none here; use device=auto or device=cpu")
    return wanted
