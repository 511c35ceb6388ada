"""One YAML file, what it extends, and `key=value` overrides → one frozen, strict `Config`.

Nothing is guessed: an unknown key, a wrong type or a value out of range raises `ConfigError`, which names the
file, the dotted key, the value, and what is allowed. The modules that do maths never see these objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from reptile_distil.config.combinations import check_graphed_steps, check_own_methods, refuse_idle_options
from reptile_distil.config.data_section import DataConfig
from reptile_distil.config.defining_settings import flatten, keep_defining
from reptile_distil.config.messages import COMMAND_LINE, describe, explain
from reptile_distil.config.method_sections import CheckpointsConfig, CotrainConfig, LgtmConfig, LossConfig, ProktConfig
from reptile_distil.config.own_task import OwnTaskConfig
from reptile_distil.config.sections import (
    OWN_SECTIONS,
    CheckpointConfig,
    ComputeConfig,
    DistributedConfig,
    KdConfig,
    MetadistilConfig,
    MethodName,
    PathText,
    ReptileConfig,
    Role,
    Section,
    StudentConfig,
    TeacherConfig,
    TrackerName,
    TrainConfig,
)
from reptile_distil.config.yaml_files import (
    drop_other_task,
    dump_yaml,
    find_config,
    merge_layer,
    parse_yaml,
    read_layers,
)
from reptile_distil.errors import ConfigError
from reptile_distil.plugin_names import PluginName, folder_name, is_plugin


def _task_kind(value: Any) -> str:
    return "own task" if isinstance(value, Mapping | OwnTaskConfig) else "task name"


class Config(Section):
    """Everything that decides the result of a run, and where it goes."""

    task: Annotated[
        Annotated[str, Tag("task name")] | Annotated[OwnTaskConfig, Tag("own task")],
        Discriminator(_task_kind),
    ]
    """Name of a GLUE task (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, ax), of a toy task, or an own task."""
    method: MethodName | PluginName = "reptile"
    """finetune: the student alone; kd: from a frozen teacher; reptile: from a teacher that learns to teach;
    metadistil: from one that learns to teach by second-order gradients (a baseline); prokt, cotrain: from one that goes
    on learning the task, near its student or whatever it does; checkpoints: from a frozen one's epochs, in order;
    lgtm: from one that learns which of its soft labels help on a quiz; or one of one's own, package.module:Name."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """What a method of one's own takes beside what every method gets, by name."""
    compare_with: tuple[MethodName | PluginName, ...] = ()
    """Further methods that distil.py runs after `method`, with the same seed, data order, teacher and start."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Decides the new classification heads, the data order and the dropout masks."""
    runs_dir: PathText = "runs"
    """Folder of all run folders."""
    output_dir: PathText | None = None
    """Run folder, in which {seed} stands for the seed; null: runs_dir/<task>/<method>-seed<seed>."""
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
    teachers: tuple[PathText, ...] = ()
    """Hub names or folders of several models fine-tuned on this task, used as they are: kd from the mean of their
    probabilities; empty: from the one that `teacher` describes."""
    student: StudentConfig = StudentConfig(pretrained="huawei-noah/TinyBERT_General_6L_768D")
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    kd: KdConfig = KdConfig()
    reptile: ReptileConfig = ReptileConfig()
    metadistil: MetadistilConfig = MetadistilConfig()
    prokt: ProktConfig = ProktConfig()
    cotrain: CotrainConfig = CotrainConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    lgtm: LgtmConfig = LgtmConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trackers: tuple[TrackerName, ...] = ()
    """Where the records of metrics.jsonl go too: tensorboard, wandb, trackio; each needs its package installed."""

    @field_validator("trackers")
    @classmethod
    def _each_tracker_once(cls, trackers: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"{', '.join(trackers)}: one is given twice")
        return trackers

    @model_validator(mode="before")
    @classmethod
    def _keep_the_epochs_that_teach(cls, values: Any) -> Any:
        """Whatever run of these methods comes to fine-tune the teacher, it keeps what method checkpoints needs."""
        if isinstance(values, dict) and isinstance(values.get("teacher", {}), Mapping):
            beside = values.get("compare_with")
            if "checkpoints" in (values.get("method"), *(beside if isinstance(beside, list | tuple) else ())):
                return {**values, "teacher": {**values.get("teacher", {}), "keep_epochs": True}}
        return values

    @model_validator(mode="after")
    def _quizzed_teachers_can_learn(self) -> Config:
        methods = {self.method, *self.compare_with}
        for name in sorted(methods & {"metadistil", "lgtm"}):
            if not (self.loss.alpha or self.loss.hidden_terms):
                raise ValueError(f"loss.alpha = 0 leaves the teacher out of the loss, so {name} could teach it nothing")
        if "metadistil" in methods and self.train.micro_batch_size is not None:
            raise ValueError(
                "train.micro_batch_size: metadistil differentiates through the whole batch at once; "
                "set it to null, and a smaller train.batch_size where memory runs out"
            )
        return self

    @model_validator(mode="after")
    def _options_of_kd_alone_have_a_use(self) -> Config:
        methods = {self.method, *self.compare_with}
        for name, is_on in {"teachers": bool(self.teachers), "loss.extra_rows": self.loss.extra_rows > 0}.items():
            if is_on and methods - {"kd", "finetune"}:
                other = min(methods - {"kd", "finetune"})
                raise ValueError(f"{name} belongs to method kd alone, but {other} is to be run, too")
        if self.teachers and (self.teacher.finetuned is not None or self.loss.hidden_terms):
            raise ValueError(
                "teachers takes the place of teacher.finetuned, and has no hidden states for loss.patient, "
                "loss.hidden, loss.relations or loss.attention: leave these out, or teachers"
            )
        return self

    @model_validator(mode="after")
    def _data_have_one_place(self) -> Config:
        if isinstance(self.task, OwnTaskConfig) and self.task.hub is not None and self.data.path is not None:
            raise ValueError("data.path has no effect on task.hub: leave one of them out")
        return self

    @model_validator(mode="after")
    def _transfer_rows_teach(self) -> Config:
        if self.data.transfer.is_on and {self.method, *self.compare_with} != {"finetune"}:
            self.data.transfer.rows_per_batch(self.train.batch_size)
            if self.data.transfer.ratio and not (self.loss.alpha or self.loss.hidden_terms):
                raise ValueError("loss.alpha = 0 leaves the teacher out of the loss, so data.transfer has no use")
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
    def _parts_fit_each_other(self) -> Config:
        check_own_methods(self)
        check_graphed_steps(self)
        return self

    @model_validator(mode="after")
    def _logits_are_enough(self) -> Config:
        is_kd = "kd" in (self.method, *self.compare_with)
        if is_kd and self.kd.keep_logits and self.loss.name is not None:
            raise ValueError(
                "kd.keep_logits keeps logits alone, and loss.name may compare more: set it to null or false"
            )
        if is_kd and self.kd.keep_logits and (terms := self.loss.hidden_terms):
            raise ValueError(
                f"kd.keep_logits keeps logits alone, not what {' and '.join(terms)} compare: set it to null or "
                "false, or them to 0"
            )
        return self

    @model_validator(mode="after")
    def _method_can_be_computed_so(self) -> Config:
        methods = (self.method, *self.compare_with)
        if self.data.packing and self.loss.hidden_terms and set(methods) != {"finetune"}:
            raise ValueError(
                f"data.packing gives no hidden states: set it to false, or {' and '.join(self.loss.hidden_terms)} to 0"
            )
        if self.compute.compile and (self.loss.relations.weight or self.loss.attention.weight):
            raise ValueError(
                "compute.compile gives no queries and keys for loss.relations and loss.attention: set it to false, or "
                "their weights to 0"
            )
        if self.distributed.shard and self.loss.hidden_projection == "learned":
            raise ValueError(
                "distributed.shard cuts models, but not the weights of loss.hidden_projection: learned beside them: "
                "choose one of the two"
            )
        if "metadistil" in methods:
            for name, is_on in {
                "data.packing": self.data.packing,
                "compute.compile": self.compute.compile,
                "distributed.shard": self.distributed.shard,
            }.items():
                if is_on:
                    raise ValueError(f"metadistil cannot be computed with {name}: set it to false")
        for name in ("checkpoints", "lgtm"):
            if name in methods and self.distributed.shard:
                raise ValueError(f"{name} cannot be computed with distributed.shard: set it to false")
        if "checkpoints" in methods and self.teacher.finetuned is not None:
            raise ValueError(
                "method checkpoints learns from the epochs of a teacher that is fine-tuned here: leave "
                "teacher.finetuned out"
            )
        if self.distributed.shard and self.reptile.copies_student and "reptile" in methods:
            raise ValueError(
                "distributed.shard cannot be used with reptile.inner_steps > 1 or persistent_adamw, which copy the "
                "student: set it to false"
            )
        return self

    @property
    def task_name(self) -> str:
        """Name of the task, GLUE's or the user's own."""
        return self.task if isinstance(self.task, str) else self.task.name

    @property
    def teacher_run(self) -> Path:
        """Folder of the run that fine-tunes the teacher of this task and seed."""
        return Path(self.runs_dir, self.task_name, f"teacher-seed{self.seed}")

    @property
    def student_run(self) -> Path:
        """Folder of the run of `method`."""
        if self.output_dir is not None:
            return Path(self.output_dir.replace("{seed}", str(self.seed)))
        return Path(self.runs_dir, self.task_name, f"{folder_name(self.method)}-seed{self.seed}")

    def needs_teacher(self, method: Role) -> bool:
        """Whether a run of the method needs a fine-tuned teacher, to learn from or to start from."""
        learns_from_it = method != "finetune" and not (method == "kd" and self.teachers)
        return learns_from_it or self.student.init == "finetuned_layers"

    def with_values(self, **changes: Any) -> Config:
        """A copy with some values replaced, checked again; of a section as a mapping, only the keys that are given.

        So it is in sections of sections. Whole sections, a task and mappings of free form are replaced as a whole.

        Raises `ConfigError` for a value that is not allowed.
        """
        return check_config(_replaced(self, changes), {}, "with_values")

    def defining_settings(self, role: Role) -> dict[str, Any]:
        """The values, by dotted key, that decide the result of a run of a method, or of the teacher's fine-tuning."""
        sections = {
            "teacher": ("data", "teacher"),
            "finetune": ("data", "student", "train", *(("teacher",) if self.needs_teacher("finetune") else ())),
            "kd": ("data", "teacher", "teachers", "student", "train", "loss", "kd"),
            **{name: ("data", "teacher", "student", "train", "loss", name) for name in OWN_SECTIONS},
        }.get(role, ("data", "teacher", "student", "train", "loss", "method_options"))
        values = flatten(self.model_dump(mode="json", include={"task", "seed", "precision", *sections}))
        if is_plugin(role):
            values["method"] = role
        if role == "finetune" and self.student.init != "pretrained":
            values["teacher.pretrained"] = self.teacher.pretrained
        if self.loss.class_weights is not None:  # the task loss of every method
            values["loss.class_weights"] = self.model_dump(mode="json")["loss"]["class_weights"]
        return keep_defining(values, role=role)

    def to_yaml(self) -> str:
        """The whole configuration as YAML, every default spelled out; `load_config` reads it back."""
        return dump_yaml(self.model_dump(mode="json"))


def _replaced(section: Section, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section under changes; in a section of it, too, only the keys that are given change."""
    values = section.model_dump()
    for key, value in changes.items():
        part = getattr(section, key, None)
        if isinstance(value, Mapping) and isinstance(part, Section) and not isinstance(part, OwnTaskConfig):
            value = _replaced(part, value)
        values[key] = value
    return values


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `path`, on top of what it `extends`, under `key=value` overrides, or one.

    `path` may be the name of a file that comes with the package, such as `sst2`.

    Raises `ConfigError` for a missing file, broken YAML, unknown keys and values that are not allowed.

    >>> config = load_config("configs/quickstart.yaml", ["train.lr=1e-3", "seed=7"])
    >>> config.train.lr, config.with_values(seed=8).seed
    (0.001, 8)
    """
    path = find_config(path)
    values, origins = _read(path, overrides)
    config = check_config(values, origins, str(path))
    _refuse_idle_overrides(config, overrides)
    return config


def describe_config(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """What `load_config` would give, as commented YAML; a task, which has no default, may be missing, and is so marked.

    Raises `ConfigError` for everything else that `load_config` refuses.
    """
    path = find_config(path)
    values, origins = _read(path, overrides)
    missing = () if "task" in values else ("task",)
    config = check_config({"task": "sst2", **values}, origins, str(path))
    _refuse_idle_overrides(config, overrides)
    return describe(config, missing=missing)


def _refuse_idle_overrides(config: Config, overrides: Sequence[str]) -> None:
    given = given_settings(overrides)
    given.pop("teacher.label_names", None)  # evaluate.py has a use for it, whatever the teacher
    refuse_idle_options([config], given)


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values, and where each comes from by dotted key."""
    values, origins = read_layers(path)
    command = parse_overrides(overrides)
    if any(item.partition("=")[0] == "task" for item in listed(overrides)):  # described as a whole
        drop_other_task(command, values, origins)
    merge_layer(values, command, origins, COMMAND_LINE)
    return values, origins


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of `key=value` overrides as one tree, the last one of a key. Raises `ConfigError`."""
    values: dict[str, Any] = {}
    for override in listed(overrides):
        key, sign, text = override.partition("=") if isinstance(override, str) else ("", "", "")
        if not sign or not key:
            raise ConfigError(f"override {override!r}: expected key=value, for example train.epochs=3")
        tree: Any = parse_yaml(text, f"override {override!r}")
        for part in reversed(key.split(".")):
            tree = {part: tree}
        merge_layer(values, tree, {}, COMMAND_LINE)
    return values


def given_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What `key=value` overrides give, by dotted key. Raises `ConfigError` as `parse_overrides` does."""
    return flatten(parse_overrides(overrides))


def listed(overrides: Sequence[str]) -> Sequence[str]:
    """Overrides as a list, a single one that stands alone too."""
    return (overrides,) if isinstance(overrides, str) else overrides


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
        raise ConfigError(explain(error.errors(), values, origins, path, root=Config, also_known=also_known)) from None
    return config


def check_keys(values: Mapping[str, Any], where: str) -> None:
    """Raises `ConfigError` for keys that no configuration has, and for values that none can have, whatever else it has.

    `where` says where the values come from.
    """
    try:
        Config.model_validate({"task": "sst2", **values})
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "value_error"]  # of several keys together
        if faults:
            raise ConfigError(explain(faults, values, {}, where, root=Config)) from None
