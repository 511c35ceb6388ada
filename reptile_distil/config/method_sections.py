"""Sections of the methods beside Reptile and MetaDistil: each method's keys stand under its name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reptile_distil.config.sections import Section


class ProktConfig(Section):
    """The teacher's update by ProKT: its own task, and its student as a soft label."""

    teacher_lr: float = Field(3e-5, ge=0)
    """Peak learning rate of the teacher's AdamW; falls linearly to 0."""
    beta: float = Field(0.4, ge=0, le=1)
    """Weight of the student in the teacher's loss; the rest is the task's."""
    order: Literal["together", "teacher_first"] = "together"
    """together: both models learn from the same forward passes. teacher_first: the student learns from the teacher as
    it is after its step, as published, which takes a forward pass of the teacher more."""


class CotrainConfig(Section):
    """A teacher that goes on learning its task, whatever its student does."""

    teacher_lr: float = Field(3e-5, ge=0)
    """Peak learning rate of the teacher's AdamW; falls linearly to 0."""
    order: Literal["together", "teacher_first"] = "together"
    """As `prokt.order`."""


class CheckpointsConfig(Section):
    """A curriculum of the teacher's own epochs, from its first to its best."""

    until: float = Field(1.0, gt=0, le=1)
    """Fraction of the steps over which the epochs teach, equally long each; after it the best one alone does."""


class LgtmConfig(Section):
    """The teacher's update by LGTM: the influence of its soft labels on a quiz, and its own task."""

    teacher_lr: float = Field(3e-5, ge=0)
    """Peak learning rate of the teacher's AdamW; falls linearly to 0."""
    beta: float = Field(0.4, ge=0, le=1)
    """Weight of the student in the teacher's auxiliary loss; the rest is the task's."""
    influence: float = Field(1.0, ge=0)
    """What the influence is multiplied by beside the auxiliary loss; in released code the teacher's rate."""
    radius: float = Field(1e-2, gt=0)
    """How far the student is moved along the quiz gradient, and back, for the finite difference: the norm."""
    every: int = Field(1, ge=1)
    """The teacher moves in the first step and every so many steps after it; the others are those of kd."""
    quiz_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows held out for the quiz, drawn once with seed 0 (the same for all seeds)."""
    quiz_batch_size: int | None = Field(None, ge=1)
    """Examples of the quiz per step; null: `train.batch_size`."""
    assumed_optimizer: Literal["sgd", "adamw"] = "sgd"
    """The step after which the student takes the quiz: plain gradient descent, or the first step of a fresh AdamW."""
    assumed_lr: float | None = Field(None, ge=0)
    """Learning rate of that step, constant; null: `train.lr`."""
