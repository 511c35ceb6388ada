"""The parts of a run's configuration: every key, its default, and what is allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from reptile_distil.home_folder import expand_home
from reptile_distil.inner_step import can_share_forward, has_closed_form
from reptile_distil.plugin_names import PluginName

LayerMapName = Literal["first", "last", "skip", "both"]
MethodName = Literal["finetune", "kd", "reptile", "metadistil", "prokt", "cotrain", "checkpoints", "lgtm"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


Role = MethodName | Literal["teacher"] | PluginName
"""What a run does: one of the methods, one of the user's own, or the teacher's fine-tuning."""


PathText = Annotated[str, AfterValidator(expand_home)]
"""A path, or a name that may be one: `~` at its front is the home folder."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Sizes that a number of the configuration may have, unless it is 0."""
TEACHER_MOVES = ("reptile", "metadistil", "prokt", "cotrain", "checkpoints", "lgtm")
"""The methods whose teacher is not the same at every step."""
OWN_SECTIONS = TEACHER_MOVES
"""The methods that have a section of keys of their own, under their name."""


def _frozen(value: Any) -> Any:
    """Lists as tuples: YAML knows lists alone, a frozen configuration tuples alone."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Section(BaseModel):
    """A part of a configuration: frozen, strict, and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _freeze_lists(cls, values: Any) -> Any:
        return {key: _frozen(value) for key, value in values.items()} if isinstance(values, dict) else values

    @field_validator("*")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Numbers whose squares can be computed with; one zero, so that two runs with it count as the same."""
        if isinstance(value, float) and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(f"expected 0 or a number from {SMALLEST:g} to {LARGEST:g} (or its negative)")
        return value + 0.0 if isinstance(value, float) else value


class TrainConfig(Section):
    """How long and how fast to train. One step is one update of the model."""

    epochs: int = Field(5, ge=1)
    """Passes over the training set."""
    max_steps: int | None = Field(None, ge=1)
    """Stop (and end the learning rate schedule) after this many steps, even in mid-epoch; null: `epochs` decides."""
    batch_size: int = Field(32, ge=1)
    """Examples per step; several processes share them."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Examples per forward pass; lower it when memory runs out: the gradient stays the batch's. null: batch_size."""
    eval_batch_size: int = Field(128, ge=1)
    """Examples per forward pass in evaluation."""
    lr: float = Field(5e-5, ge=0)
    """Peak learning rate of AdamW; falls linearly to 0."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of weight matrices, per step and unit of learning rate; biases and layer norms never decay."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    adamw: Literal["torch", "transformers4"] = "torch"
    """Whose AdamW: PyTorch's; or that of transformers 4, with which the released code of several methods steps: it adds
    adam_eps before the bias correction, so that its first steps are smaller where gradients are tiny."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global L2 norm."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs in a row without a better dev score; null: never."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines in metrics.jsonl."""


class TeacherConfig(Section):
    """The large model."""

    pretrained: PathText = "google-bert/bert-base-uncased"
    """Hub name or folder of the pretrained model to fine-tune; its head, if any, is dropped."""
    finetuned: PathText | None = None
    """Hub name or folder of a model fine-tuned on this task, used as it is; null: fine-tune `pretrained`."""
    label_names: tuple[str, ...] = ()
    """What the outputs of `finetuned` mean, in order, where its own config only says LABEL_0, LABEL_1, ..."""
    train: TrainConfig = TrainConfig()
    """How `pretrained` is fine-tuned."""
    keep_epochs: bool = False
    """Keep the model of each epoch of that, in epochs/ of its run folder; method checkpoints turns this on."""


class StudentConfig(Section):
    """The small model."""

    init: Literal["pretrained", "teacher_layers", "finetuned_layers", "random"] = "pretrained"
    """Start from a checkpoint, from layers of `teacher.pretrained`, from layers and head of the fine-tuned teacher, or
    from random weights in the teacher's shape."""
    pretrained: PathText | None = None
    """Hub name or folder of the student's checkpoint (init: pretrained)."""
    num_layers: int | None = Field(None, ge=1, le=1000)
    """Depth of the student (every init but pretrained)."""
    teacher_layers: tuple[int, ...] = ()
    """Which layers to copy, counted from 0 (init: teacher_layers or finetuned_layers); empty: evenly spaced, as the
    `skip` layer map."""

    @model_validator(mode="after")
    def _start_is_complete(self) -> StudentConfig:
        if self.init == "pretrained" and (self.num_layers is not None or self.teacher_layers):
            raise ValueError(
                "num_layers and teacher_layers belong to init: teacher_layers, finetuned_layers or random, but init is "
                "pretrained"
            )
        if self.init == "pretrained" and self.pretrained is None:
            raise ValueError("init: pretrained needs student.pretrained, a hub name or a folder")
        if self.init == "random" and self.teacher_layers:
            raise ValueError("teacher_layers belongs to init: teacher_layers or finetuned_layers, but init is random")
        if self.init != "pretrained" and self.num_layers is None and not self.teacher_layers:
            raise ValueError(f"init: {self.init} needs student.num_layers")
        if self.teacher_layers and self.num_layers not in (None, len(self.teacher_layers)):
            raise ValueError(
                f"num_layers is {self.num_layers} but teacher_layers names {len(self.teacher_layers)} layers"
            )
        return self


class KdConfig(Section):
    """Distillation from a teacher that stays as it is."""

    keep_logits: bool | None = None
    """Compute the teacher's logits of all training rows once, in a fixed order, and keep them beside the tokenised
    data, for all runs with this teacher and these rows; null: where training goes over all rows at least once and the
    loss needs no hidden states, which are not kept."""


_OF_EQUATION_1 = ("inner_optimizer", "inner_lr", "inner_eps", "share_forward", "inner_steps", "inner_batch")


class ReptileConfig(Section):
    """The teacher's update, equations 1 and 2."""

    update: Literal["adamw", "interpolate"] = "adamw"
    """adamw: the clipped difference is a persistent AdamW's gradient (released code); interpolate: as printed."""
    mu: float = Field(5e-5, ge=0)
    """Teacher's learning rate; falls linearly to 0 like the student's.

    adamw: about the change of each matched weight per step; interpolate: the fraction of the gap closed per step.
    """
    mu_until: float = Field(1.0, gt=0, le=1)
    """Fraction of the steps after which mu has fallen to 0, and the teacher stays where it is."""
    layer_map: LayerMapName | tuple[int | tuple[int, ...], ...] = "skip"
    """Which teacher layer(s) each student layer moves: first, last, skip, both, or a list by student layer."""
    order: Literal["teacher_first", "student_first"] = "teacher_first"
    """teacher_first: equations 1, 2, 3 as published. student_first: the student's own step is the inner step, and the
    teacher moves after it, for about the price of kd; it has no equation 1, and takes none of its options."""
    inner_optimizer: Literal["adamw", "sgd", "persistent_adamw"] = "adamw"
    """Equation 1: a fresh AdamW each step (released code), plain gradient descent (printed equation), or an AdamW
    whose moments live on (persistent_adamw)."""
    inner_lr: float | None = Field(None, ge=0)
    """lambda of equation 1, constant; null: `train.lr`."""
    inner_eps: float | None = Field(None, gt=0)
    """epsilon of equation 1's AdamW, which is of the kind that `train.adamw` says; null: `train.adam_eps`."""
    released: bool = False
    """What else the released code does: `train.weight_decay` decays the matched teacher weights and the student's copy
    too, and with a warm-up lambda of equation 1 is 0 in every step, so that the copy stays where it is."""
    share_forward: bool = True
    """Equations 1 and 3 share dropout masks, and so one student forward pass; false: new masks (released code)."""
    inner_steps: int = Field(1, ge=1)
    """Inner steps of equation 1 per training step, on successive batches; more than 1 takes a copy of the student."""
    inner_batch: Literal["same", "held_out"] = "same"
    """Equation 1 begins with the batch of equation 3, or takes training rows that equation 3 never sees (held_out)."""
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows that is held out for it, drawn once with seed 0 (the same for all seeds)."""
    every: int = Field(1, ge=1)
    """The teacher moves (equations 1 and 2) in the first step and every so many steps after it."""
    move_head: bool = True
    """Whether equation 2 moves what lies behind the encoder: pooler and classifier."""
    move_embeddings: bool = True
    """Whether equation 2 moves the embeddings."""
    task_lr: float = Field(0.0, ge=0)
    """Peak learning rate of an AdamW step of the teacher's own on the task, after equation 2; 0: none."""
    pull: float = Field(0.0, ge=0, le=1)
    """The fraction of its way back to its start that each teacher weight goes after that; 0: none."""

    @property
    def copies_student(self) -> bool:
        """Whether equation 1 steps a copy of the student."""
        return not has_closed_form(inner_steps=self.inner_steps, inner_optimizer=self.inner_optimizer)

    @property
    def can_share_forward(self) -> bool:
        """Whether one forward pass of the student can serve equations 1 and 3."""
        return can_share_forward(
            inner_steps=self.inner_steps, inner_batch=self.inner_batch, inner_optimizer=self.inner_optimizer
        )

    @model_validator(mode="after")
    def _options_fit(self) -> ReptileConfig:
        if self.share_forward and not self.can_share_forward:
            raise ValueError(
                "share_forward: equation 1 can share equation 3's forward pass only as one fresh step on the same "
                "batch; set it to false with inner_steps > 1, inner_batch: held_out or persistent_adamw"
            )
        if self.order == "student_first":
            for key in _OF_EQUATION_1:
                if getattr(self, key) != ReptileConfig.model_fields[key].default:
                    raise ValueError(f"{key} belongs to equation 1, which order: student_first does not have")
        if self.released and (self.update, self.inner_optimizer, self.order) != ("adamw", "adamw", "teacher_first"):
            raise ValueError(
                "released is about update: adamw, inner_optimizer: adamw and order: teacher_first; set it to false "
                "with others"
            )
        if self.inner_batch == "same" and self.held_out_fraction != 0.1:
            raise ValueError("held_out_fraction belongs to inner_batch: held_out, but inner_batch is same")
        if self.every > 1 and (self.task_lr or self.pull):
            raise ValueError("task_lr and pull follow every equation 2: set every to 1 with them")
        if self.update == "interpolate" and self.mu > 1:
            raise ValueError(f"mu = {self.mu}: update interpolate closes a fraction of the gap, at most 1")
        if self.inner_optimizer == "sgd" and self.inner_eps is not None:
            raise ValueError("inner_eps belongs to inner_optimizer: adamw or persistent_adamw, but it is sgd")
        return self


class MetadistilConfig(Section):
    """The teacher's update by MetaDistil: second-order, from a quiz of training rows the student never trains on."""

    teacher_lr: float = Field(1e-5, ge=0)
    """Peak learning rate of the teacher's AdamW; falls linearly to 0."""
    quiz_fraction: float = Field(0.1, gt=0, lt=1)
    """Fraction of the training rows held out for the quiz, drawn once with seed 0 (the same for all seeds)."""
    quiz_batch_size: int | None = Field(None, ge=1)
    """Examples of the quiz per step; null: `train.batch_size`."""
    assumed_optimizer: Literal["sgd", "adamw"] = "sgd"
    """The student's assumed step: plain gradient descent (released code), or the first step of a fresh AdamW."""
    assumed_lr: float | None = Field(None, ge=0)
    """Learning rate of the assumed step, constant; null: `train.lr`."""


class DistributedConfig(Section):
    """Several processes, started by torchrun or accelerate launch. How many they are is the launcher's to say."""

    shard: bool = False
    """Cut every weight of teacher and student over the processes (FSDP2), for models too large for one device."""


class CheckpointConfig(Section):
    """When an unfinished run saves where it stands; at the end of each epoch it does in any case."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; null: only the clock decides."""
    every_minutes: float | None = Field(10.0, gt=0)
    """Minutes between two checkpoints; null: only the steps decide."""
    keep: int = Field(2, ge=1)
    """How many checkpoints to keep: the newest ones."""
    keep_when_finished: bool = False
    """Keep them when the run is finished, and needs them no more."""


class ComputeConfig(Section):
    """How forward passes are computed; none of it changes a result by more than rounding."""

    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """sdpa: PyTorch's fused attention; eager: written out; auto: sdpa where the architecture has it."""
    compile: bool = False
    """Compile the models with torch.compile: faster steps after a minute or more; needs a C++ compiler, or Triton."""
    cuda_graphs: bool = False
    """Replay training steps from CUDA graphs, one for each length, which saves launching their kernels one by one (one
    GPU; finetune, kd, prokt, cotrain, and reptile where each step takes one fresh inner step on its own batch, or
    none). Not tried on a GPU yet."""
