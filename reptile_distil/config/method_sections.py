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
