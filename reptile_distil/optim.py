"""AdamW with the usual decay groups, and what an optimizer must hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FUSED_DEVICES = ("cpu", "cuda")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; vectors (biases, layer norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, *, lr: float, weight_decay: float = 0.0, eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, betas 0.9 and 0.999.

    One kernel reads and writes each weight once (`fused`), where the device has it: on a CPU a quarter of the time of
    the loop over parameters, and no scratch memory. Elsewhere PyTorch chooses. Move the model to its device before.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    can_fuse = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(decay_groups(model, weight_decay), lr=lr, eps=eps, fused=can_fuse or None)


def check_trainable(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], owner: str) -> None:
    """Raises `ValueError` where the optimizer would not move these parameters of `owner`, teacher or student.

    It must hold all of them, and they must be float32 or float64: in half precision a step of 5e-5 is rounded away, and
    in float16 AdamW's epsilon is 0.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in held for parameter in parameters)
    if missing:
        raise ValueError(
            f"{owner}_optimizer does not hold {missing} of the {len(parameters)} {owner} parameters it must update: "
            f"build it from {owner}.parameters()"
        )
    for parameter in parameters:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{owner} weights are {parameter.dtype}, too coarse to be trained: load the model with "
                "from_pretrained(..., dtype=torch.float32)"
            )
