"""Packed forward passes: the rows of a batch end to end as one row without padding.

Linear layers, layer norms and GELUs see real tokens only. So does attention where PyTorch has a kernel for rows of
unequal length (see `has_kernel`); elsewhere, where rows must not see each other, it sets them apart again, layer by
layer. The result is the padded one up to rounding, its gradient too; dropout draws other masks.
For encoders whose model passes keyword arguments down to its attention: BERT, RoBERTa and ELECTRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from reptile_distil.errors import ModelError

NAME = "reptile_distil_packed"
"""Of the attention function; without a `layout` it is transformers' own sdpa."""

_POOLED = ("BertForSequenceClassification",)
_UNPOOLED = (
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
    "ElectraForSequenceClassification",
)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a batch (B, L) stand in the packed row of its T tokens."""

    mask: Tensor
    """(B, L) bool, true for tokens. Padding stands behind the tokens."""
    tokens: Tensor
    """(T,) position of each token in the flattened batch."""
    bounds: Tensor
    """(B + 1,) int32, position of each row's first token in the packed row, and behind the last row."""
    _biases: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, attention_mask: Tensor) -> Self:
        """The layout of a batch with this mask (B, L). Raises `ModelError` for a row that starts with padding."""
        mask = attention_mask.bool()
        if not mask[:, 0].all():
            raise ModelError("a batch with padding on the left cannot be packed: set data.packing=false")
        return cls(mask, *_places(mask))

    @classmethod
    def of_lengths(cls, lengths: Tensor, width: int, device: torch.device) -> Self:
        """The layout, on a device, of rows of these lengths (B,) on the CPU, padded to `width`: nothing waits.

        As long as the lengths are there, it is the same one for all forward passes of their batch.
        """
        if lengths not in _layouts:
            mask = torch.arange(width) < lengths[:, None]
            tokens, bounds = _places(mask)
            _layouts[lengths] = cls(_moved(mask, device), _moved(tokens, device), _moved(bounds, device))
        layout: Self = _layouts[lengths]
        return layout

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, 1, L) 0 for tokens and minus infinity for padding, made once."""
        if dtype not in self._biases:
            nothing = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
            self._biases[dtype] = nothing.masked_fill(~self.mask, float("-inf"))[:, None, None]
        return self._biases[dtype]

    @property
    def starts(self) -> Tensor:
        """(B,) position of each row's first token in the packed row."""
        return self.bounds[:-1]

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...)."""
        return padded.flatten(0, 1).index_select(0, self.tokens)

    def pad(self, packed: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), with zeros for padding."""
        flat = packed.new_zeros(self.mask.numel(), *packed.shape[1:]).index_copy(0, self.tokens, packed)
        return flat.view(*self.mask.shape, *packed.shape[1:])


_layouts = WeakIdKeyDictionary()
"""By the lengths that they were made of."""


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`tokens` and `bounds` of a layout."""
    return mask.flatten().nonzero()[:, 0], functional.pad(mask.sum(dim=1).cumsum(0), (1, 0)).int()


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def use_packing(model: Any) -> None:
    """Makes the model fit for `packed_logits`; a padded forward pass stays as it was. Raises as `check_packable`."""
    check_packable(model)
    model.set_attn_implementation(NAME)


def check_packable(model: Any) -> None:
    """Raises `ModelError` for an architecture that cannot be packed."""
    kind = type(model).__name__
    if kind not in (*_POOLED, *_UNPOOLED):
        known = ", ".join(kind.removesuffix("ForSequenceClassification") for kind in (*_POOLED, *_UNPOOLED))
        raise ModelError(f"a {kind} cannot be packed, only {known} classifiers can: set data.packing=false")


def packed_logits(model: Any, inputs: Mapping[str, Tensor], lengths: Tensor | None = None) -> Tensor:
    """Logits (B, C) of a batch whose padding, if any, is on the right; raises `ModelError` where it is not.

    Where the CPU knows the rows' `lengths` (B,), nothing waits for the device.
    """
    ids = inputs["input_ids"]
    layout = (
        Layout.of(inputs["attention_mask"]) if lengths is None else Layout.of_lengths(lengths, ids.shape[1], ids.device)
    )
    positions = torch.arange(layout.mask.shape[1], device=layout.mask.device)
    if hasattr(model, "roberta"):
        positions = positions + model.config.pad_token_id + 1
    packed = {name: layout.pack(inputs[name])[None] for name in ("input_ids", "token_type_ids") if name in inputs}
    packed["position_ids"] = layout.pack(positions.expand_as(layout.mask))[None]
    states = model.base_model(**packed, layout=layout).last_hidden_state[0]
    first = states.index_select(0, layout.starts)[:, None]  # (B, 1, H), as heads that take row[:, 0] want it
    if type(model).__name__ in _POOLED:
        first = model.dropout(model.base_model.pooler(first))
    logits: Tensor = model.classifier(first)
    return logits


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention (1, H, T, D) to (1, T, H, D) within each row of the layout."""
    if layout is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return padded
    if has_kernel(query, dropout) and scaling in (None, query.shape[-1] ** -0.5):
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]  # (1, H, T, D) -> (T, H, D)
        longest = layout.mask.shape[1]
        return varlen_attn(*rows, layout.bounds, layout.bounds, longest, longest)[None], None
    # (1, H, T, D) -> (B, H, L, D)
    query, key, value = (layout.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value))
    bias = layout.bias(query.dtype)
    states = functional.scaled_dot_product_attention(query, key, value, bias, dropout, scale=scaling)
    return layout.pack(states.transpose(1, 2))[None], None


def _find_kernel() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before PyTorch 2.10
        return None
    return varlen_attn


varlen_attn: Any = _find_kernel()


def has_kernel(query: Tensor, dropout: float) -> bool:
    """Whether PyTorch's variable-length attention, a FlashAttention, takes queries (1, H, T, D) like these.

    It is there from PyTorch 2.10 on, on NVIDIA GPUs of 2020 or later, in half precision, and drops nothing: so for the
    teacher and in evaluation, and for a student without dropout in its attention.
    """
    return (
        varlen_attn is not None
        and dropout == 0
        and query.is_cuda
        and torch.version.hip is None
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
