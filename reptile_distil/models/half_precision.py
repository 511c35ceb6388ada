"""Half-precision copies of the weights of linear layers, which autocast would make anew in each forward pass.

Autocast casts each weight by itself, forwards and, its gradient, backwards: some hundred small kernels a step. Here all
copies are refreshed by one operation, in the first forward pass after the weights have changed, and all gradients cast
back by another. Values and gradients are autocast's, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from reptile_distil.runtime.processes import is_sharded


class HalfPrecisionWeights:
    """Copies of a model's linear layers' weights, which stand in their place `inside`.

    What PyTorch counts as a change of a weight is seen, and storage that is swapped for other storage. What is written
    in place through `.data` is not: call `mark_changed` after it.

    Args:
        model: its weights stay what is trained, and get the gradients.
        dtype: that of the copies.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self._places: list[tuple[dict[str, Any], str]] = []
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._seen: list[tuple[int, int]] = []
        _watch_optimizers()

    def __deepcopy__(self, memo: dict[int, Any]) -> HalfPrecisionWeights:
        """Of a copied model, whose weights go their own way."""
        return HalfPrecisionWeights(memo.get(id(self.model), self.model), self.dtype)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The layers compute with the copies, as refreshed now; where they cannot, with their own weights."""
        if not self._is_ready():
            yield
            return
        self._refresh()
        copies: Sequence[Tensor] = self._copies
        if torch.is_grad_enabled():
            copies = _Stand.apply(self._copies, *self._weights)  # type: ignore[no-untyped-call]
        try:
            for (parameters, name), copy in zip(self._places, copies, strict=True):
                parameters[name] = copy
            yield
        finally:
            for (parameters, name), weight in zip(self._places, self._weights, strict=True):
                parameters[name] = weight

    def _is_ready(self) -> bool:
        """Whether the layers hold the weights that the copies are of; looks for them where they do not.

        They hold others where weights were replaced, or the model is called with other weights for once; where it was
        moved or converted, they may be the same parameters on another device or of another dtype. Sharded weights have
        no copies, nor have those of compiled models, whose casts are part of their kernels.
        """
        if self.model._compiled_call_impl is not None:
            return False
        if self._weights and self._are_in_place():
            return True
        if not all(_is_own(weight) for weight in self.model.parameters()):
            return False
        self._find()
        return bool(self._weights)

    def _are_in_place(self) -> bool:
        return all(
            parameters[name] is weight and weight.device == copy.device and weight.dtype == torch.float32
            for (parameters, name), weight, copy in zip(self._places, self._weights, self._copies, strict=True)
        )

    def _find(self) -> None:
        self._places, self._weights = [], []
        layers = [module for module in self.model.modules() if type(module) is nn.Linear]
        others = [module for module in self.model.modules() if type(module) is not nn.Linear]
        elsewhere = {id(weight) for module in others for weight in module._parameters.values()}
        for layer in layers:
            for name, weight in layer._parameters.items():
                if weight is not None and weight.dtype == torch.float32 and id(weight) not in elsewhere:
                    self._places.append((layer._parameters, name))
                    self._weights.append(weight)
        with torch.no_grad():
            self._copies = [torch.empty_like(weight, dtype=self.dtype) for weight in self._weights]
        self._seen = []

    def _refresh(self) -> None:
        seen = [(weight._version, weight.data_ptr()) for weight in self._weights]
        if seen != self._seen:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._weights)
            self._seen = seen


@functools.cache
def _watch_optimizers() -> None:
    """From now on every optimizer says that it has changed its weights, which its fused kernels do not."""

    def mark(optimizer: Optimizer, *_: Any) -> None:
        mark_changed(weight for group in optimizer.param_groups for weight in group["params"])

    register_optimizer_step_post_hook(mark)


def mark_changed(tensors: Iterable[Tensor]) -> None:
    """Lets copies of these weights be refreshed where something changed them that PyTorch did not see.

    A replayed graph does, and whoever writes through `.data`.
    """
    torch.autograd.graph.increment_version(list(tensors))


def _is_own(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter) and not is_sharded(weight)


class _Stand(torch.autograd.Function):
    """The copies, as functions of the weights whose gradients are theirs."""

    @staticmethod
    def forward(ctx: Any, copies: list[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        if torch.is_grad_enabled():  # the gradient has one of its own
            whole = [gradient.to(torch.float32) for gradient in there]
        else:
            whole = [torch.empty_like(gradient, dtype=torch.float32) for gradient in there]
            torch._foreach_copy_(whole, there)
        rest = iter(whole)
        return (None, *(None if gradient is None else next(rest) for gradient in gradients))
