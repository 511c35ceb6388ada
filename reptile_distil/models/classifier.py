"""Teacher and Student around any transformers sequence classifier."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.errors import ModelError
from reptile_distil.models.packing import packed_logits, use_packing
from reptile_distil.runtime.processes import local_part


class Outputs(NamedTuple):
    """What a classifier says of a batch."""

    logits: Tensor
    """(B, C)."""
    hidden_states: tuple[Tensor, ...] = ()
    """The embeddings' output and that of each layer, (B, L, H) each; empty unless asked for."""

    def without_graph(self) -> Outputs:
        """The same values, through which no gradient flows."""
        return Outputs(self.logits.detach(), tuple(states.detach() for states in self.hidden_states))


class Classifier(nn.Module):
    """A sequence classifier that takes a batch and returns its logits.

    Args:
        model: a transformers sequence classifier.
        autocast_dtype: run the forward pass under autocast to this dtype; None: in the weights' own.
        packed: compute on the batch's real tokens alone (see `packing`); the logits are the same up to rounding.

    Raises:
        ModelError: the model cannot be packed.
    """

    def __init__(self, model: nn.Module, *, autocast_dtype: torch.dtype | None = None, packed: bool = False) -> None:
        super().__init__()
        if packed:
            use_packing(model)
        self.model = model
        self.autocast_dtype = autocast_dtype
        self.packed = packed
        self._inputs = set(inspect.signature(model.forward).parameters) - {"labels"}

    @classmethod
    def wrap(cls, model: nn.Module) -> Self:
        """The model itself where it is such a wrapper already, else a wrapper around it."""
        if isinstance(model, cls):
            return model
        if isinstance(model, Classifier):
            return cls(model.model, autocast_dtype=model.autocast_dtype, packed=model.packed)
        return cls(model)

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that take gradients."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C). Entries of the batch that the model does not take, such as labels, are left out."""
        return self.outputs(batch).logits

    def outputs(self, batch: Batch, *, hidden_states: bool = False) -> Outputs:
        """Logits, and where asked for hidden states. Raises `ModelError` where the model gives none."""
        inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name in self._inputs}
        if hidden_states:
            inputs["output_hidden_states"] = True
        # Autocast ends with the forward pass: a longer one would keep half-precision copies of weights that moved.
        with torch.autocast(
            inputs["input_ids"].device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        ):
            if self.packed and "attention_mask" in inputs and not hidden_states:
                return Outputs(packed_logits(self.model, inputs))
            output = self.model(**inputs)
        # A model that cannot give them returns None or an empty tuple, and a loss on them would be 0 in silence.
        if hidden_states and not output.hidden_states:
            raise ModelError(f"{type(self.model).__name__} gives no hidden states: a loss on them cannot be computed")
        return Outputs(output.logits, output.hidden_states if hidden_states else ())


class Student(Classifier):
    """The classifier that learns."""


class Teacher(Classifier):
    """The classifier that gives soft labels: always in eval mode, never in the student's graph, yet trainable."""

    def __init__(self, model: nn.Module, *, autocast_dtype: torch.dtype | None = None, packed: bool = False) -> None:
        super().__init__(model, autocast_dtype=autocast_dtype, packed=packed)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked: dropout has no place in soft labels."""
        return super().train(False)

    def outputs(self, batch: Batch, *, hidden_states: bool = False) -> Outputs:
        """As any classifier's, in eval mode even where someone has put the inner model into train mode."""
        self.eval()
        return super().outputs(batch, hidden_states=hidden_states)

    def soft_labels(self, batch: Batch) -> Tensor:
        """Logits (B, C) without a graph, from the weights as they are now."""
        return self.targets(batch).logits

    @torch.no_grad()
    def targets(self, batch: Batch, *, hidden_states: bool = False) -> Outputs:
        """What a student is compared with, without a graph, from the weights as they are now."""
        return self.outputs(batch, hidden_states=hidden_states)


def wrap_pair(teacher: nn.Module, student: nn.Module) -> tuple[Teacher, Student]:
    """Both models, wrapped. Raises `ValueError` where training the student would change the teacher's own weights."""
    wrapped = Teacher.wrap(teacher), Student.wrap(student)
    of_teacher = {_place(theta) for theta in wrapped[0].parameters()}
    if any(_place(theta) in of_teacher for theta in wrapped[1].trainable):
        raise ValueError("teacher and student share weights: give two models, or copy.deepcopy(teacher) as the student")
    return wrapped


def _place(theta: Tensor) -> int:
    """Where the values lie: two parameters may share them."""
    return local_part(theta).data_ptr() or id(theta)


def count_parameters(model: nn.Module) -> int:
    """Number of weights, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
