"""Floating point operations of one forward pass, in closed form."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import nn

from reptile_distil.arithmetic import layer_flops

_PLAIN_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "albert", "distilbert")
_IN_A_LAYER = re.compile(r"\.layer\.|albert_layer_groups")


def flops_per_sequence(model: Any, length: int) -> int | None:
    """Operations for one sequence of `length` tokens; a multiplication and its addition count as two.

    With width d, feed-forward width f, and N layers, one sequence of L tokens takes

        N (8 L d² + 4 L² d + 4 L d f)

    in the encoder: four projections, the scores and the weighted sums of attention, the two feed-forward products. On
    top come 2 · in · out for each linear layer outside: L times for a projection of embeddings, once for pooler and
    head. Softmax, normalisation, activations and biases are left out (about 1 %). None for an architecture whose
    layers are not these.
    """
    config = model.config
    if config.model_type not in _PLAIN_ENCODERS:
        return None
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_dim
    layer = layer_flops(np.array([length]), width, inner)
    outside = sum(
        2 * module.in_features * module.out_features * (length if "embedding" in name else 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _IN_A_LAYER.search(name)
    )
    return int(config.num_hidden_layers * layer + outside)
