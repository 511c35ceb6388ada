"""The parts of a table's configuration that are not a run's: who runs the cells, and what is searched for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reptile_distil.config.sections import PathText, Section

EngineName = Literal["local", "ray", "slurm"]


class RayConfig(Section):
    """Cells as tasks of Ray (extra `ray`)."""

    address: str | None = None
    """The cluster to join, host:port; null: RAY_ADDRESS, else the cluster of this machine, else one on this machine
    that lives as long as the command."""
    gpus_per_cell: float | None = Field(None, ge=0)
    """GPUs that a cell reserves; a fraction such as 0.1 lets ten cells share one; null: 1 where the cluster has GPUs
    and `device` is not cpu, else 0."""
    cpus_per_cell: float = Field(1, gt=0)
    """CPU cores that a cell reserves."""
    retries: int = Field(3, ge=0)
    """How often a cell is started again whose worker or node has died."""


class SlurmConfig(Section):
    """Cells as jobs of Slurm, submitted by submitit (extra `slurm`)."""

    cluster: Literal["slurm", "local"] = "slurm"
    """local: the same jobs as processes of this machine, as many at once as it has cores for (`cpus_per_cell`, at most
    `parallel`), to try the command without Slurm; it has no partition, memory_gb, options and setup."""
    partition: str | None = None
    """Partition; null: the cluster's default."""
    minutes: int = Field(240, ge=1)
    """Time limit of a job. A cell that needs longer is queued again at the limit, and goes on from its checkpoint."""
    gpus_per_cell: int | None = Field(None, ge=0)
    """GPUs of a job; null: none is asked for, and processes of this machine see the same as the command."""
    cpus_per_cell: int | None = Field(None, ge=1)
    """CPU cores of a job; null: the cluster's default."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory of a job in GB; null: the cluster's default."""
    parallel: int = Field(256, ge=1)
    """Jobs of one array that run at the same time."""
    signal_seconds: int = Field(120, ge=1)
    """How long before the time limit SIGUSR1 is sent, so that a checkpoint can be written."""
    options: dict[str, str | int | float | bool] = Field({})
    """Further options of sbatch, by their long names: {account: mine, constraint: a100}; true: one without a value."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job's command, such as `module load cuda`."""
    retries: int = Field(3, ge=0)
    """How often a cell is submitted again whose job has died."""


class EngineConfig(Section):
    """Who runs the cells of a table."""

    name: EngineName = "local"
    """local: this process, and others that are started by the same command; ray: a Ray cluster; slurm: Slurm."""
    ray: RayConfig = RayConfig()
    slurm: SlurmConfig = SlurmConfig()


class RangeConfig(Section):
    """The values that a search may give one key: from `low` to `high`, or one of `choices`."""

    low: float | int | None = None
    """The smallest value."""
    high: float | int | None = None
    """The largest value."""
    log: bool = False
    """Draw from the logarithms of the values: each power of ten is as likely."""
    choices: tuple[float | int | str | bool | None, ...] = ()
    """The values, where they are no range."""

    @model_validator(mode="after")
    def _is_one_of_two_kinds(self) -> RangeConfig:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stand alone: leave out low, high and log, or choices")
            if len(set(map(repr, self.choices))) < max(2, len(self.choices)):
                raise ValueError("choices needs two or more different values")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"expected low < high, or choices; got low: {self.low}, high: {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, got {self.low}")
        return self


class SearchConfig(Section):
    """A search for better values of some keys, by the score on training rows that are held out."""

    keys: dict[str, RangeConfig] = Field(min_length=1)
    """What is searched, by dotted key of a run: {train.lr: {low: 1e-5, high: 1e-4, log: true}}."""
    trials: int = Field(20, ge=1)
    """Trials of each row on each task; each trains one run per seed of the table."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: draws more often where scores were high (tree-structured Parzen estimator); random: draws evenly."""
    sampler_seed: int = Field(0, ge=0, lt=2**32)
    """Decides what is drawn."""


class TableKeys(BaseModel):
    """What a table's file says beside the settings of its runs."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

    tasks: list[str | dict[str, Any]] = Field(min_length=1)
    """The columns: names of GLUE or toy tasks, or own tasks as in a run's `task`; on the command line the names of the
    file's own tasks, too."""
    methods: list[str] = Field(min_length=1)
    """The rows: names of methods and of `variants`; the teacher comes with those that need one."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Each cell is run with each of them."""
    variants: dict[str, dict[str, Any]] = {}
    """Further rows by name, for `methods`: a `method`, and settings of a run laid over those of the file."""
    per_task: dict[str, dict[str, Any]] = {}
    """Settings of a run, by task, laid over those of the file."""
    name: str = Field("table", pattern=r"^[A-Za-z0-9_.-]+$")
    """Start of the names of the table's files in runs_dir."""
    output: PathText | None = None
    """The same with its folder, for files elsewhere; null: runs_dir/<name>."""
    engine: EngineConfig = EngineConfig()
    search: SearchConfig | None = None
    """Instead of a table: a search for better values of some keys, for each row on each task."""
