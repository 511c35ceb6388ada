"""Sections of the loss, and of the methods beside Reptile and MetaDistil: each method's keys stand under its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reptile_distil.config.sections import LayerMapName, Section
from reptile_distil.plugin_names import PluginName


class _TermConfig(Section):
    """A further term of the loss, whose options belong to its weight."""

    weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _options_have_a_use(self) -> _TermConfig:
        for key, field in type(self).model_fields.items():
            if getattr(self, key) != field.default and not self.weight:
                raise ValueError(f"{key} belongs to the term's weight, which is 0")
        return self


class RelationsConfig(_TermConfig):
    """Relations between tokens, for any two widths and numbers of heads (MiniLMv2)."""

    weight: float = Field(0.0, ge=0)
    """Weight of KL(teacher ‖ student) of the relations of queries, keys and values at one layer each; 0: none."""
    heads: int = Field(12, ge=1, le=2**16)
    """Relation heads, which divide both models' widths; MiniLMv2 has 48."""
    teacher_layer: int | None = Field(None, ge=0)
    """The teacher's layer, counted from 0; null: its last."""
    student_layer: int | None = Field(None, ge=0)
    """The student's layer, counted from 0; null: its last."""


class AttentionConfig(_TermConfig):
    """Attention maps, for any two widths and numbers of heads (TinyBERT)."""

    weight: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of attention maps, head by head, or of their means over the heads where the
    models have different numbers of heads; 0: none."""
    of: Literal["scores", "probabilities"] = "scores"
    """What is compared: scores before the softmax (TinyBERT), or probabilities, without dropout."""


class LossConfig(Section):
    """L = (1 - alpha) * task loss + alpha * T² * KL(teacher || student) + further terms by their weights."""

    name: PluginName | None = None
    """A loss of one's own, `package.module:Name`, a subclass of `DistillationLoss`; null: the loss above."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What it takes beside the values below, by name."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation term."""
    temperature: float = Field(5.0, gt=0)
    """T, divides both models' logits."""
    regression: Literal["mse", "none"] = "mse"
    """Distillation term for one logit: mse of the logits, or none as in the authors' code (KL over one logit is 0)."""
    soft: Literal["kl", "mse"] = "kl"
    """Distillation term for classes: kl, or mse: T² * mean squared difference of the probabilities (MetaDistil)."""
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of each class in the task loss, in the order of the labels; balanced: rows / (classes * rows of the class)
    of the training rows. For a multi-label task that of each label's positives; balanced: negatives / positives."""
    patient: float = Field(0.0, ge=0)
    """Weight of the squared distance of normalised first-token states, last layer left out (PKD); 0: none.

    PKD's weight of 100 is 100 / width here, because its code also takes the mean over the width.
    """
    hidden: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of the hidden states of all real tokens; 0: none."""
    extra_rows: float = Field(0.0, ge=0)
    """Weight, in kd, of the task loss on a second batch of training rows that teach by their labels alone: what a quiz
    knows, as plain labels; 0: none."""
    extra_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows held out for it, the rows of a quiz (`quiz_fraction`) of the same size."""
    hidden_projection: Literal["none", "learned"] = "none"
    """learned: `hidden` compares W times the student's states, of any width, with the teacher's (TinyBERT); W is
    trained with the student, and is no part of it."""
    hidden_embeddings: bool = False
    """Whether `hidden` compares the embeddings' outputs, too."""
    relations: RelationsConfig = RelationsConfig()
    attention: AttentionConfig = AttentionConfig()
    layer_map: LayerMapName | tuple[int | tuple[int, ...], ...] = "skip"
    """Which teacher layer(s) each student layer is compared with in `patient`, `hidden` and `attention`; as
    `reptile.layer_map`."""

    @property
    def hidden_terms(self) -> tuple[str, ...]:
        """Keys of the weights that are not 0 of terms on what the models compute inside."""
        weights = {
            "patient": self.patient,
            "hidden": self.hidden,
            "relations.weight": self.relations.weight,
            "attention.weight": self.attention.weight,
        }
        return tuple(f"loss.{key}" for key, weight in weights.items() if weight)

    @model_validator(mode="after")
    def _options_have_a_use(self) -> LossConfig:
        if self.options and self.name is None:
            raise ValueError("options belongs to name, a loss of one's own, which is null")
        if self.extra_fraction != 0.1 and not self.extra_rows:
            raise ValueError("extra_fraction belongs to extra_rows, which is 0")
        for key in ("hidden_projection", "hidden_embeddings"):
            if getattr(self, key) != LossConfig.model_fields[key].default and not self.hidden:
                raise ValueError(f"{key} belongs to hidden, which is 0")
        if self.layer_map != "skip" and not (self.patient or self.hidden or self.attention.weight):
            raise ValueError(
                "layer_map is only for patient, hidden and attention, which are all 0; for Reptile: reptile.layer_map"
            )
        return self


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
