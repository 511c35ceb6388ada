"""What a run records as it goes: one record every few steps and one an epoch, the lines of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt


def _null_to_nan(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_null_to_nan)]
"""A number that may be undefined: NaN in memory, null in a file."""
OptionalNumber = Annotated[float | None, BeforeValidator(_null_to_nan)]
"""The same where it may also be missing altogether: then it is None."""
SplitScores = Annotated[dict[str, Annotated[dict[str, Number], Field(min_length=1)]], Field(min_length=1)]
"""Scores by dev split and metric, at least one of them."""


def nan_to_null(value: Any) -> Any:
    """`value` as JSON can hold it: None for each number that is not finite, in mappings and lists too."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Record(BaseModel):
    """Base of what is written into a run's folder: immutable, and every value of the type that is stated."""

    model_config = ConfigDict(frozen=True, strict=True)


class StepRecord(Record):
    """One logged step: its number, and by name its logs (`loss`, ...) and learning rates (`lr`, ...)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]

    event: Literal["step"] = "step"
    epoch: NonNegativeInt
    step: NonNegativeInt

    @classmethod
    def of(cls, values: Mapping[str, float], *, epoch: int, step: int) -> StepRecord:
        """The record of a step with these logs and learning rates."""
        return cls.model_validate({"epoch": epoch, "step": step, **values})

    @property
    def values(self) -> dict[str, float]:
        """Logs and learning rates by name."""
        return self.__pydantic_extra__

    def to_dict(self) -> dict[str, Any]:
        """The record as its line of metrics.jsonl holds it."""
        return {"event": self.event, "epoch": self.epoch, "step": self.step, **self.values}


class Evaluation(Record):
    """Student and teacher on the dev splits, or on the validation rows that choose the best epoch."""

    scores: SplitScores
    score: Number
    """The one that chooses the best epoch."""
    teacher_scores: SplitScores | None = None
    """The teacher's own; this and what follows is None where there is no teacher."""
    teacher_score: OptionalNumber = None
    agreement: OptionalNumber = None
    """Of student and teacher on the first split: a fraction of the rows, for regression a correlation."""
    teacher_drift: OptionalNumber = None
    """L2 distance that the teacher's weights have moved since the start."""

    def in_epoch(
        self,
        *,
        epoch: int,
        step: int,
        train: Mapping[str, float],
        last_gap: float | None,
        train_seconds: float,
    ) -> EpochRecord:
        """The record of the epoch that this evaluation ends."""
        of_epoch = {"epoch": epoch, "step": step, "train": dict(train), "last_gap": last_gap}
        return EpochRecord.model_validate({**of_epoch, "train_seconds": train_seconds, **self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """The values that there are, by name; an undefined one is NaN."""
        return self.model_dump(exclude_unset=True)


class EpochRecord(Evaluation):
    """One epoch: the means of its steps' logs, and the evaluation at its end."""

    epoch: PositiveInt
    step: NonNegativeInt
    """Optimizer steps since the run's start."""
    train: dict[str, Number]
    """Means of the logs over the epoch's steps."""
    last_gap: float | None = None
    """The gap at the epoch's last step, for a method that has one."""
    train_seconds: NonNegativeFloat
    """Seconds spent in steps since the run's start, evaluation not counted."""

    def to_dict(self) -> dict[str, Any]:
        """The record as its line of metrics.jsonl holds it; an undefined number is still NaN or infinite here."""
        values = self.model_dump(exclude_unset=True)
        in_front = {name: values.pop(name) for name in _OF_TRAINING if name in values}
        return {"event": "epoch", **in_front, **values}

    def evaluation_to_dict(self) -> dict[str, Any]:
        """The same with `epoch` and `step`, and without what is said of training."""
        left_out = ("event", *_OF_TRAINING[2:])
        return {name: value for name, value in self.to_dict().items() if name not in left_out}


_OF_TRAINING = ("epoch", "step", "train", "last_gap", "train_seconds")
"""The fields that a line has before those of the evaluation."""
