"""AdamW with the usual decay groups, as PyTorch or as transformers 4 computes it, and its first step in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reptile_distil.runtime.processes import local_part

FUSED_DEVICES = ("cpu", "cuda")

AdamwName = Literal["torch", "transformers4"]
"""Whose AdamW: they differ in where epsilon is added, and in whether a step decays weights before or after it moves."""


class Transformers4AdamW(torch.optim.AdamW):
    """AdamW as transformers 4 computes it, by PyTorch's kernels; the released code of several methods steps with it.

    With m and v the moments at step t, decay w and learning rate lr:

        theta <- theta - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
        theta <- theta - lr * w * theta

    PyTorch's adds eps after the bias correction, which makes transformers 4's the larger one by 1 / sqrt(1 - beta2^t):
    31.6 times in the first step; and it decays first. Source: `optimization.py` of transformers 4.12.

    t counts the steps of a parameter group: a parameter that gets no gradient in some of them counts them too. The
    state's own `step` is not t: it stays at a number for which PyTorch's bias corrections are 1.

    A learning rate that is a tensor is for CUDA graphs, in which no number may change: `count_step` must be called
    before each step or replay.
    """

    _NO_CORRECTION = 2.0**24  # 0.999 to this power is 0; float32 adds 1 to it and stays there

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["num_steps"] = 0
        self._corrections: list[Tensor] = []

    def count_step(self) -> None:
        """Counts a step, and leaves its bias corrections on the device."""
        self._corrections = self._corrections or [
            torch.ones((), device=group["params"][0].device) for group in self.param_groups
        ]
        for group, correction in zip(self.param_groups, self._corrections, strict=True):
            correction.fill_(self._count(group))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Takes one step; with a closure, returns its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        try:
            for number, group in enumerate(self.param_groups):
                self._prepare_state(group)
                counted = isinstance(group["lr"], Tensor)
                group["lr"] = group["lr"] * (self._corrections[number] if counted else self._count(group))
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, (lr, weight_decay) in zip(self.param_groups, given, strict=True):
                group["lr"], group["weight_decay"] = lr, weight_decay
        for group in self.param_groups:
            moved = [local_part(theta) for theta in group["params"] if theta.grad is not None]
            if group["weight_decay"] and moved:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
        return loss

    @staticmethod
    def _count(group: dict[str, Any]) -> float:
        """Counts a step of the group; returns sqrt(1 - beta2^t) / (1 - beta1^t)."""
        group["num_steps"] += 1
        beta1, beta2 = group["betas"]
        return float((1 - beta2 ** group["num_steps"]) ** 0.5 / (1 - beta1 ** group["num_steps"]))

    def _prepare_state(self, group: dict[str, Any]) -> None:
        """The state of parameters that have a gradient for the first time, as PyTorch makes it but for `step`."""
        for theta in group["params"]:
            if theta.grad is None or self.state[theta]:
                continue
            on_device = group["fused"] or group["capturable"]
            self.state[theta] = {
                "step": torch.full((), self._NO_CORRECTION, device=theta.device if on_device else "cpu"),
                "exp_avg": torch.zeros_like(theta, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(theta, memory_format=torch.preserve_format),
            }


ADAMW: dict[AdamwName, type[torch.optim.AdamW]] = {"torch": torch.optim.AdamW, "transformers4": Transformers4AdamW}


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, eps: float = 1e-8, kind: AdamwName = "torch"
) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, betas 0.9 and 0.999.

    One kernel reads and writes each weight once (`fused`), where the device has it: on a CPU a quarter of the time of
    the loop over parameters, and no scratch memory. Elsewhere PyTorch chooses. Move the model to its device before.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = can_be_fused(parameters) or None
    return ADAMW[kind](decay_groups(model, weight_decay), lr=lr, eps=eps, fused=fused)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; vectors (biases, layer norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def can_be_fused(parameters: Iterable[Tensor]) -> bool:
    """Whether there is a kernel that reads and writes each of these weights once in an optimizer's step."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """The AdamW is as new: its moments and counts of steps are 0, in the same memory."""
    counted_by_group = isinstance(optimizer, Transformers4AdamW)
    state = [
        tensor
        for of_weight in optimizer.state.values()
        for name, tensor in of_weight.items()
        if not (counted_by_group and name == "step")
    ]
    if state:
        torch._foreach_zero_(state)
    for group in optimizer.param_groups if counted_by_group else ():
        group["num_steps"] = 0


def fresh_eps(eps: float, adamw: AdamwName) -> float:
    """What the first step of a fresh AdamW, betas 0.9 and 0.999, adds to |g|: it goes along g / (|g| + this)."""
    return float(eps / (1 - 0.999) ** 0.5) if adamw == "transformers4" else eps


def divide_by_magnitude(gradients: list[Tensor], eps: float) -> None:
    """Turns each g into g / (|g| + eps), the direction of an AdamW's first step."""
    magnitude = torch._foreach_abs(gradients)
    torch._foreach_add_(magnitude, eps)
    torch._foreach_div_(gradients, magnitude)


@torch.no_grad()
def add_decay(model: nn.Module, decay: float, kind: AdamwName) -> None:
    """Adds to a step in the weights' `.grad` what this fraction of decay adds to it, in matrices alone."""
    for theta in model.parameters() if decay else ():
        if theta.grad is not None and theta.ndim > 1:
            if kind == "torch":  # theta' = (1 - decay) theta - step
                theta.grad.add_(theta, alpha=decay)
            else:  # theta' = (1 - decay) (theta - step)
                theta.grad.lerp_(theta, decay)
