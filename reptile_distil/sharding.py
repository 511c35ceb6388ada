"""A model cut over the processes (FSDP2): each holds its part of every weight, gradient and optimizer state.

Equation 2 subtracts weight by weight, so it works part by part: paired weights have equal shapes and are cut alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from reptile_distil.errors import LayerMapError
from reptile_distil.layer_map import encoder_layers


def shard_model(model: nn.Module, device: str) -> None:
    """Cuts the model's weights over all processes, in place; each process's part lies on its device.

    A forward pass gathers one encoder layer's weights after another, and drops them again, so that a model larger than
    a device can be trained on several.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    try:
        layers = list(encoder_layers(model)[1])
    except LayerMapError:  # shared layers, as in ALBERT: one part only
        layers = []
    for module in (*layers, model):
        # Without it PyTorch keeps the outermost weights whole until the next backward pass, which a teacher never has:
        # equation 2 would move the parts, and the next forward pass would still use the old whole.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole_copy(model: Any) -> Any:
    """An ordinary model with all weights of a sharded classifier, on the CPU of the main process; None elsewhere.

    Every process must call it.
    """
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() != 0:
        return None
    with torch.device("meta"):  # allocates nothing: every weight is put in its place below
        copy = transformers.AutoModelForSequenceClassification.from_config(model.config)
    copy.load_state_dict(state, assign=True)
    return copy
