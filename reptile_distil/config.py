"""One YAML file, what it extends, and `key=value` overrides → one frozen, strict `Config`.

Nothing is guessed: an unknown key, a wrong type or a value out of range raises `ConfigError`, which names the
file, the dotted key, the value, and what is allowed. The modules that do maths never see these objects.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from reptile_distil.errors import ConfigError
from reptile_distil.yaml_files import dump_yaml, merge_layer, parse_yaml, read_layers

LayerMapName = Literal["first", "last", "skip", "both"]
MethodName = Literal["finetune", "kd", "reptile", "metadistil"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]
MetricName = Literal["accuracy", "f1", "matthews_correlation", "pearson", "spearmanr"]

COMMAND_LINE = "command line"
"""Where an override comes from, in messages."""


def _frozen(value: Any) -> Any:
    """Lists as tuples: YAML knows lists alone, a frozen configuration tuples alone."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _freeze_lists(cls, values: Any) -> Any:
        return {key: _frozen(value) for key, value in values.items()} if isinstance(values, dict) else values


class OwnTaskConfig(_Section):
    """A task of the user's own: files, columns, labels and metrics, no code."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
    """Used in the names of run folders: letters, digits, `_`, `.` and `-`; the first is no `.` or `-`."""
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Column(s) that hold the sentence, or the two sentences of a pair."""
    label: str = "label"
    """Column that holds the label."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order; empty for a regression task."""
    metrics: tuple[MetricName, ...] = Field(min_length=1)
    """Scores to report; the mean of them chooses the best epoch."""
    files: dict[str, str] = Field(min_length=1)
    """File of each split (train, dev, test), relative to `data.path`: .csv, .tsv or .jsonl."""

    @field_validator("files")
    @classmethod
    def _splits_are_known(cls, files: dict[str, str]) -> dict[str, str]:
        for split in files:
            if split not in ("train", "dev", "test"):
                raise ValueError(f"{split!r} is no split: expected train, dev or test")
        return files


class DataConfig(_Section):
    """Where the examples come from and how long they may be."""

    path: str | None = None
    """Folder with the official GLUE files or a `datasets` folder; null: the hub (`nyu-mll/glue`)."""
    max_length: int = Field(128, ge=4, le=2**20)
    """Longest sequence, in tokens, special tokens included; longer ones are cut."""
    max_train_rows: int | None = Field(None, ge=1)
    """Train on this many rows, drawn once with seed 0 (the same for all seeds); null: on all of them."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    """Hold out this fraction of those rows (drawn once with seed 0) and choose the best epoch by it, so that the dev
    splits are looked at once, when the run is over; null: the dev split chooses."""
    check_rows: bool = True
    """Refuse official splits whose number of rows is not the published one."""
    packing: bool = False
    """Compute on real tokens alone, no padding (BERT, RoBERTa, ELECTRA); pays where batches hold much padding."""
    cache_dir: str | Literal[False] | None = None
    """Folder that keeps tokenised data for the next run; null: reptile_distil in HF_HOME or ~/.cache; false: none."""


class TrainConfig(_Section):
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
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global L2 norm."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs in a row without a better dev score; null: never."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines in metrics.jsonl."""


class TeacherConfig(_Section):
    """The large model."""

    pretrained: str = "google-bert/bert-base-uncased"
    """Hub name or folder of the pretrained model to fine-tune; its head, if any, is dropped."""
    finetuned: str | None = None
    """Hub name or folder of a model fine-tuned on this task, used as it is; null: fine-tune `pretrained`."""
    label_names: tuple[str, ...] = ()
    """What the outputs of `finetuned` mean, in order, where its own config only says LABEL_0, LABEL_1, ..."""
    train: TrainConfig = TrainConfig()
    """How `pretrained` is fine-tuned."""


class StudentConfig(_Section):
    """The small model."""

    init: Literal["pretrained", "teacher_layers", "finetuned_layers", "random"] = "pretrained"
    """Start from a checkpoint, from layers of `teacher.pretrained`, from layers and head of the fine-tuned teacher, or
    from random weights in the teacher's shape."""
    pretrained: str | None = None
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


class LossConfig(_Section):
    """L = (1 - alpha) * task loss + alpha * T² * KL(teacher || student) + patient * ... + hidden * ..."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the distillation term."""
    temperature: float = Field(5.0, gt=0)
    """T, divides both models' logits."""
    regression: Literal["mse", "none"] = "mse"
    """Distillation term for one logit: mse of the logits, or none as in the authors' code (KL over one logit is 0)."""
    soft: Literal["kl", "mse"] = "kl"
    """Distillation term for classes: kl, or mse: T² * mean squared difference of the probabilities (MetaDistil)."""
    patient: float = Field(0.0, ge=0)
    """Weight of the squared distance of normalised first-token states, last layer left out (PKD); 0: none.

    PKD's weight of 100 is 100 / width here, because its code also takes the mean over the width.
    """
    hidden: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of the hidden states of all real tokens; 0: none."""
    layer_map: LayerMapName | tuple[int | tuple[int, ...], ...] = "skip"
    """Which teacher layer(s) each student layer is compared with in `patient` and `hidden`; as `reptile.layer_map`."""

    @model_validator(mode="after")
    def _map_has_a_use(self) -> LossConfig:
        if self.layer_map != "skip" and not (self.patient or self.hidden):
            raise ValueError(
                "layer_map is only for patient and hidden, which are both 0; for Reptile: reptile.layer_map"
            )
        return self


# The recipe's, so that a file which extends base.yaml can choose sgd without a word about it.
INNER_EPS = 3.1623e-7


class ReptileConfig(_Section):
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
    inner_optimizer: Literal["adamw", "sgd", "persistent_adamw"] = "adamw"
    """Equation 1: a fresh AdamW each step (released code), plain gradient descent (printed equation), or an AdamW
    whose moments live on (persistent_adamw)."""
    inner_lr: float | None = Field(None, ge=0)
    """lambda of equation 1, constant; null: `train.lr`."""
    inner_eps: float = Field(INNER_EPS, gt=0)
    """epsilon of equation 1's AdamW; by default with the step of the authors' (see base.yaml)."""
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
    """Upkeep: peak learning rate of an AdamW step of the teacher's own on the task, after equation 2; 0: none."""
    pull: float = Field(0.0, ge=0, le=1)
    """Upkeep: the fraction of its way back to its start that each teacher weight goes after that; 0: none."""

    @model_validator(mode="after")
    def _options_fit(self) -> ReptileConfig:
        plain = self.inner_steps == 1 and self.inner_batch == "same" and self.inner_optimizer != "persistent_adamw"
        if self.share_forward and not plain:
            raise ValueError(
                "share_forward: equation 1 can share equation 3's forward pass only as one fresh step on the same "
                "batch; set it to false with inner_steps > 1, inner_batch: held_out or persistent_adamw"
            )
        if self.inner_batch == "same" and self.held_out_fraction != 0.1:
            raise ValueError("held_out_fraction belongs to inner_batch: held_out, but inner_batch is same")
        if self.every > 1 and (self.task_lr or self.pull):
            raise ValueError("task_lr and pull follow every equation 2: set every to 1 with them")
        if self.inner_optimizer == "sgd" and self.inner_eps != INNER_EPS:
            raise ValueError("inner_eps belongs to inner_optimizer: adamw or persistent_adamw, but it is sgd")
        return self


class MetadistilConfig(_Section):
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


class DistributedConfig(_Section):
    """Several processes, started by torchrun or accelerate launch. How many they are is the launcher's to say."""

    shard: bool = False
    """Cut every weight of teacher and student over the processes (FSDP2), for models too large for one device."""


class CheckpointConfig(_Section):
    """When an unfinished run saves where it stands; at the end of each epoch it does in any case."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; null: only the clock decides."""
    every_minutes: float | None = Field(10.0, gt=0)
    """Minutes between two checkpoints; null: only the steps decide."""
    keep: int = Field(2, ge=1)
    """How many checkpoints to keep: the newest ones."""
    keep_when_finished: bool = False
    """Keep them when the run is finished, and needs them no more."""


class ComputeConfig(_Section):
    """How forward passes are computed; none of it changes a result by more than rounding."""

    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """sdpa: PyTorch's fused attention; eager: written out; auto: sdpa where the architecture has it."""
    compile: bool = False
    """Compile the models with torch.compile: faster steps after a minute or more; needs a C++ compiler, or Triton."""
    cuda_graphs: bool = False
    """Replay training steps from CUDA graphs, one for each length, which saves launching their kernels one by one (one
    GPU; finetune, kd, and reptile with one inner step). Not tried on a GPU yet."""


def _task_kind(value: Any) -> str:
    return "own task" if isinstance(value, Mapping | OwnTaskConfig) else "task name"


class Config(_Section):
    """Everything that decides the result of a run, and where it goes."""

    task: Annotated[
        Annotated[str, Tag("task name")] | Annotated[OwnTaskConfig, Tag("own task")],
        Discriminator(_task_kind),
    ]
    """Name of a GLUE task (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, ax), of a toy task, or an own task."""
    method: MethodName = "reptile"
    """finetune: the student alone; kd: from a frozen teacher; reptile: from a teacher that learns to teach;
    metadistil: from one that learns to teach by second-order gradients (a baseline)."""
    compare_with: tuple[MethodName, ...] = ()
    """Further methods that distil.py runs after `method`, with the same seed, data order, teacher and start."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Decides the new classification heads, the data order and the dropout masks."""
    runs_dir: str = "runs"
    """Folder of all run folders."""
    output_dir: str | None = None
    """Run folder; null: runs_dir/<task>/<method>-seed<seed>."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto: cuda, else mps, else cpu."""
    num_threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of the whole process; null: PyTorch's own choice. Small models gain nothing from more than one."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "fp32"
    """bf16: forward passes under bfloat16 autocast, weights and updates in float32; tf32: float32 with matrix products
    in TF32 (NVIDIA GPUs); auto: bf16 on a GPU that has it, else fp32."""
    compute: ComputeConfig = ComputeConfig()
    distributed: DistributedConfig = DistributedConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig(pretrained="huawei-noah/TinyBERT_General_6L_768D")
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    reptile: ReptileConfig = ReptileConfig()
    metadistil: MetadistilConfig = MetadistilConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trackers: tuple[TrackerName, ...] = ()
    """Who is told what metrics.jsonl is told: tensorboard, wandb, trackio; each needs its package installed."""

    @field_validator("trackers")
    @classmethod
    def _each_tracker_once(cls, trackers: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"{', '.join(trackers)}: one is given twice")
        return trackers

    @model_validator(mode="after")
    def _metadistil_can_learn(self) -> Config:
        if "metadistil" not in (self.method, *self.compare_with):
            return self
        if self.train.micro_batch_size is not None:
            raise ValueError(
                "train.micro_batch_size: metadistil differentiates through the whole batch at once; "
                "set it to null, and a smaller train.batch_size where memory runs out"
            )
        if not (self.loss.alpha or self.loss.patient or self.loss.hidden):
            raise ValueError("loss.alpha = 0 leaves the teacher out of the loss, so metadistil could teach it nothing")
        return self

    @model_validator(mode="after")
    def _one_folder_per_method(self) -> Config:
        if self.compare_with and self.output_dir is not None:
            raise ValueError("compare_with needs one run folder per method: set runs_dir instead of output_dir")
        return self

    @model_validator(mode="after")
    def _ways_to_compute_fit(self) -> Config:
        if self.data.packing and self.compute.attention != "auto":
            raise ValueError("data.packing brings an attention of its own: leave compute.attention at auto")
        if self.data.packing and self.compute.compile:
            raise ValueError("data.packing cannot be compiled: choose it or compute.compile")
        if self.distributed.shard and self.compute.compile:
            raise ValueError("distributed.shard cannot be compiled: choose it or compute.compile")
        return self

    @model_validator(mode="after")
    def _steps_can_be_graphed(self) -> Config:
        if not self.compute.cuda_graphs:
            return self
        methods = (self.method, *self.compare_with)
        if "metadistil" in methods:
            raise ValueError("metadistil cannot be computed with compute.cuda_graphs: set it to false")
        for name, is_on in {
            "data.packing": self.data.packing,
            "compute.compile": self.compute.compile,
            "distributed.shard": self.distributed.shard,
            "train.micro_batch_size": self.train.micro_batch_size,
            "teacher.train.micro_batch_size": self.teacher.train.micro_batch_size,
        }.items():
            if is_on:
                raise ValueError(f"{name} cannot be used with compute.cuda_graphs: choose one of the two")
        reptile = self.reptile
        is_plain = reptile.inner_steps == reptile.every == 1 and reptile.inner_batch == "same"
        if "reptile" in methods and not (is_plain and reptile.inner_optimizer != "persistent_adamw"):
            raise ValueError(
                "compute.cuda_graphs takes one fresh inner step on the batch of each step: set it to false with "
                "reptile.inner_steps > 1, every > 1, inner_batch: held_out or persistent_adamw"
            )
        return self

    @model_validator(mode="after")
    def _method_can_be_computed_so(self) -> Config:
        methods = (self.method, *self.compare_with)
        if self.data.packing and (self.loss.patient or self.loss.hidden) and set(methods) != {"finetune"}:
            raise ValueError(
                "data.packing gives no hidden states: set it to false, or loss.patient and loss.hidden to 0"
            )
        if "metadistil" in methods:
            for name, is_on in {
                "data.packing": self.data.packing,
                "compute.compile": self.compute.compile,
                "distributed.shard": self.distributed.shard,
            }.items():
                if is_on:
                    raise ValueError(f"metadistil cannot be computed with {name}: set it to false")
        remembers = self.reptile.inner_steps > 1 or self.reptile.inner_optimizer == "persistent_adamw"
        if self.distributed.shard and remembers and "reptile" in methods:
            raise ValueError(
                "distributed.shard cannot be used with reptile.inner_steps > 1 or persistent_adamw, which copy the "
                "student: set it to false"
            )
        return self

    @property
    def task_name(self) -> str:
        """Name of the task, GLUE's or the user's own."""
        return self.task if isinstance(self.task, str) else self.task.name

    def needs_teacher(self, method: MethodName) -> bool:
        """Whether a run of the method needs a fine-tuned teacher, to learn from or to start from."""
        return method != "finetune" or self.student.init == "finetuned_layers"

    def with_values(self, **changes: Any) -> Config:
        """A copy with some top-level values replaced, checked again."""
        return Config.model_validate({**self.model_dump(), **changes})

    def decisive_values(self, role: MethodName | Literal["teacher"]) -> dict[str, Any]:
        """The values, by dotted key, that decide the result of a run of a method, or of the teacher's fine-tuning."""
        sections = {
            "teacher": ("data", "teacher"),
            "finetune": ("data", "student", "train", *(("teacher",) if self.needs_teacher("finetune") else ())),
            "kd": ("data", "teacher", "student", "train", "loss"),
            "reptile": ("data", "teacher", "student", "train", "loss", "reptile"),
            "metadistil": ("data", "teacher", "student", "train", "loss", "metadistil"),
        }[role]
        values = _flat(self.model_dump(mode="json", include={"task", "seed", "precision", *sections}))
        if role == "finetune" and self.student.init != "pretrained":
            values["teacher.pretrained"] = self.teacher.pretrained
        if role == "teacher":
            values = {key: value for key, value in values.items() if key not in _NOT_FOR_THE_TEACHER}
        return {key: value for key, value in values.items() if key.rpartition(".")[2] not in _WITHOUT_EFFECT}

    def to_yaml(self) -> str:
        """The whole configuration as YAML, every default spelled out; `load_config` reads it back."""
        return dump_yaml(self.model_dump(mode="json"))


# Keys that change how a run is computed or shown, not what it computes.
_WITHOUT_EFFECT = ("micro_batch_size", "eval_batch_size", "log_every", "cache_dir", "packing")
_NOT_FOR_THE_TEACHER = ("teacher.finetuned", "teacher.label_names")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file at `path`, on top of what it `extends`, under `key=value` overrides.

    Raises `ConfigError` for a missing file, broken YAML, unknown keys and values that are not allowed.

    >>> config = load_config("configs/quickstart.yaml", ["train.lr=1e-3", "seed=7"])
    >>> config.train.lr, config.with_values(seed=8).seed
    (0.001, 8)
    """
    values, origins = read_layers(Path(path))
    merge_layer(values, parse_overrides(overrides), origins, COMMAND_LINE)
    config = check_config(values, origins, str(path))
    _refuse_options_of_other_methods(config, overrides)
    return config


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of `key=value` overrides as one tree, the last one of a key. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {override!r}: expected key=value, for example train.epochs=3")
        tree: Any = parse_yaml(text, f"override {override!r}")
        for part in reversed(key.split(".")):
            tree = {part: tree}
        merge_layer(values, tree, {}, COMMAND_LINE)
    return values


def check_config(
    values: Mapping[str, Any], origins: Mapping[str, str], path: str, also_known: Sequence[str] = ()
) -> Config:
    """The configuration with these values; raises `ConfigError` for those that are not allowed.

    `origins` and `path` say where values, by dotted key, come from; `also_known` are keys that stand beside those of a
    run in the same file, for the hint at what an unknown key may mean.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values, origins, path, also_known)) from None
    return config


def _refuse_options_of_other_methods(config: Config, overrides: Sequence[str]) -> None:
    """A file may hold the options of every method, but who gives one on the command line expects it to do something."""
    methods = (config.method, *config.compare_with)
    for override in overrides:
        key = override.partition("=")[0]
        section = key.partition(".")[0]
        if section in ("reptile", "metadistil") and section not in methods:
            raise ConfigError(
                f"command line: {key} has no effect on method {config.method}; leave it out, or give "
                f"method={section} or compare_with=[{section}]"
            )


def describe(config: BaseModel, without: Collection[str] = ()) -> str:
    """The configuration as YAML with each field's description as a comment above it, `without` some top-level keys."""
    return "\n".join(_described_lines(config, without)) + "\n"


def _described_lines(section: BaseModel, without: Collection[str] = (), indent: int = 0) -> Iterator[str]:
    pad = " " * indent
    for name, field in type(section).model_fields.items():
        if name in without:
            continue
        value = getattr(section, name)
        if field.description:
            yield f"{pad}# {' '.join(field.description.split())}"
        if isinstance(value, BaseModel):
            yield f"{pad}{name}:"
            yield from _described_lines(value, indent=indent + 2)
        else:
            plain = section.model_dump(mode="json", include={name})
            # One line per key: a mapping in flow style, without its braces.
            yield pad + dump_yaml(plain, default_flow_style=True).strip()[1:-1]


def explain(
    error: ValidationError,
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    path: str,
    also_known: Sequence[str] = (),
) -> str:
    """One sentence for the first fault: file, dotted key, value, and what is allowed."""
    faults = error.errors()
    fault = faults[0]
    location = _key_parts(fault, values)
    key = ".".join(location)
    known = key
    while known not in origins and "." in known:
        known = known.rpartition(".")[0]
    where = origins.get(known, path)
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_did_you_mean(location, also_known)}"
    if fault["type"] == "missing":
        return f"{path}: the key {key!r} is missing"
    if fault["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{fault['msg'].removeprefix('Value error, ')}"
    # Where a value may be of several types, each type has a fault of its own under the same key.
    reasons = dict.fromkeys(
        _reason(other) for other in faults if _key_parts(other, values)[: len(location)] == location
    )
    return f"{where}: {key} = {_thawed(fault['input'])!r}: {', or '.join(reasons)}"


def _key_parts(fault: Any, values: Any) -> list[str]:
    """The parts of the dotted key; the names of types that pydantic puts between or behind them are left out."""
    parts = []
    for part in fault["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
        else:
            continue
        parts.append(str(part))
    return [*parts, str(fault["loc"][-1])] if fault["type"] == "missing" else parts


def _reason(fault: Any) -> str:
    if fault["type"] == "model_type":
        return "expected a section of `key: value` lines"
    message = str(fault["msg"]).replace("Input should be", "expected").replace("a valid tuple", "a list")
    return message[0].lower() + message[1:]


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _did_you_mean(location: Sequence[str], also_known: Sequence[str]) -> str:
    section: Any = Config
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        section = OwnTaskConfig if part == "task" else annotation
    names = [*section.model_fields, *(also_known if section is Config else ())]
    close = difflib.get_close_matches(location[-1], names, n=1)
    prefix = "".join(f"{part}." for part in location[:-1])
    return f"; did you mean {prefix + close[0]!r}?" if close else f"; known here: {', '.join(names)}"
