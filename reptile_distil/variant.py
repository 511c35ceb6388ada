"""Departures from the published Reptile step, for ablations: each changes one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.data.extra_batches import alone, companion, companion_names
from reptile_distil.models.layer_map import ParameterPair, part_of_model


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a step does otherwise than published; by default nothing.

    Args:
        inner_steps: steps of equation 1, on successive batches.
        inner_batch: "same": equation 1 begins with the batch of equation 3. "held_out": it takes others.
        every: the teacher moves in the first step and every `every`-th after it; the others are equation 3 alone.
        move_head: whether equation 2 moves what lies behind the encoder, pooler and classifier.
        move_embeddings: whether it moves the embeddings.

    Raises:
        ValueError: an option out of range.
    """

    inner_steps: int = 1
    inner_batch: Literal["same", "held_out"] = "same"
    every: int = 1
    move_head: bool = True
    move_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.inner_batch not in ("same", "held_out"):
            raise ValueError(f"inner_batch = {self.inner_batch!r}: expected one of same, held_out")
        for name in ("inner_steps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")

    @property
    def takes_other_batches(self) -> bool:
        """Whether equation 1 takes other batches than that of equation 3, or more."""
        return self.inner_steps > 1 or self.inner_batch == "held_out"

    def moving_pairs(self, pairs: Sequence[ParameterPair], student: nn.Module) -> list[ParameterPair]:
        """The matched pairs that take part in equation 2."""
        moves = {"head": self.move_head, "embeddings": self.move_embeddings, "encoder": True}
        return [pair for pair in pairs if moves[part_of_model(student, pair.student_name)]]

    def inner_batches(self, batch: Batch, given: Sequence[Batch] | None) -> Sequence[Batch]:
        """The batches of equation 1: those that are given or travel inside the batch, or else the batch itself.

        Raises `ValueError` for batches that are missing, too many, or given where none are taken.
        """
        if given is not None:
            if not self.takes_other_batches or len(given) != self.inner_steps:
                raise ValueError(
                    f"{len(given)} inner batches are given, but inner_steps is {self.inner_steps} and inner_batch is "
                    f"{self.inner_batch!r}"
                )
            return given
        if self.takes_other_batches:
            return [companion(batch, name) for name in companion_names("inner", self.inner_steps)]
        return [alone(batch)]
