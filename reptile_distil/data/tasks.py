"""The GLUE table, and the description of a user's own task.

Nothing is read or loaded here: `splits.load_split` does that with a `Task` in hand.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from reptile_distil.errors import ConfigError, did_you_mean
from reptile_distil.metric_names import fault_in_metrics, fault_in_names

TRANSFER = "transfer"
"""Name of the split of rows that have no labels, or whose labels are not read (see `transfer`)."""


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set of the hub."""

    name: str
    """Of the repository: `owner/name`."""
    config: str | None = None
    """Which of its configurations; None for one that has a single or a default one."""
    revision: str | None = None
    """Branch, tag or commit; None: main as it is now."""
    splits: Mapping[str, str]
    """Our name of a split -> its name there."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of a model: text columns in; one class of `label_names`, any number of them, or a real number out.

    Raises `ConfigError` when the fields contradict each other.
    """

    name: str
    """Key in the YAML files: `sst2`, not `SST-2`."""
    text_columns: tuple[str, ...]
    """One or two columns, named as in the hub's data set or in the user's own files."""
    label_column: str = "label"
    label_names: tuple[str, ...] = ()
    """Class names; the class index is the position in this tuple. Empty: regression."""
    multi_label: bool = False
    """Whether a row has any number of the labels, not exactly one."""
    label_columns: tuple[str, ...] = ()
    """For a multi-label task whose files have a column of 0 and 1 for each label: those columns, as `label_names`."""
    label_separator: str = ","
    """What stands between a row's labels where one text holds them all (multi-label)."""
    metrics: tuple[str, ...]
    """Keys as in `evaluate`. The score that selects a model is their mean on `selection_split`."""
    splits: Mapping[str, tuple[int, ...]]
    """Split name -> the row counts it may have; an empty tuple leaves the count unchecked."""
    score_range: tuple[float, float] | None = None
    """Smallest and largest regression label; None: any finite number."""
    folder: str | None = None
    """Folder of GLUE's own TSV files (`SST-2`); None for other tasks."""
    files: Mapping[str, str] | None = None
    """A user's own task: split name -> file, or folder that `datasets` has saved; None for other tasks."""
    hub: HubDataset | None = None
    """A user's own task on a data set of the hub; None for other tasks."""
    quoting: Literal["csv", "none"] | None = None
    """Whether quotation marks around a field of a user's CSV or TSV file are its quotes; None: as the file tells."""
    is_generated: bool = False
    """Whether the rows are generated (see `toy`), not read from anywhere."""

    def __post_init__(self) -> None:
        if len(self.text_columns) not in (1, 2):
            raise ConfigError(f"task {self.name}: text_columns needs one or two columns, got {list(self.text_columns)}")
        names = self.label_names
        if len(names) == 1 or len(set(names)) < len(names):
            raise ConfigError(
                f"task {self.name}: label_names needs two or more different names, "
                f"or none for regression, got {list(names)}"
            )
        if self.label_columns and len(self.label_columns) != len(names):
            raise ConfigError(
                f"task {self.name}: has {len(self.label_columns)} label columns, but {len(names)} label names"
            )
        fault = fault_in_metrics(self.metrics, num_labels=len(names), multi_label=self.multi_label)
        if fault is None and self.multi_label:
            fault = fault_in_names(names, self.label_separator)
        if fault is not None:
            raise ConfigError(f"task {self.name}: {fault}")
        if self.multi_label and self.metrics and not names:
            raise ConfigError(f"task {self.name}: a multi-label task needs the names of its labels: give labels")
        if self.folder is not None and self.files is not None:
            raise ConfigError(f"task {self.name}: folder is for GLUE and files for a task of your own, not both")
        if self.files is not None and set(self.files) != set(self.splits):
            raise ConfigError(
                f"task {self.name}: files names the splits {sorted(self.files)}, but splits names {sorted(self.splits)}"
            )

    @property
    def is_own(self) -> bool:
        """Whether its data are a user's own, not GLUE's and not generated."""
        return self.files is not None or self.hub is not None

    @property
    def is_regression(self) -> bool:
        """Whether the label is a real number."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Width of the model's last layer: the number of classes, 1 for regression."""
        return len(self.label_names) or 1

    @property
    def is_pair(self) -> bool:
        """Whether an example is two texts."""
        return len(self.text_columns) == 2

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """`("dev",)`, MNLI's `("dev_matched", "dev_mismatched")`, or `()` for AX."""
        return tuple(split for split in self.splits if split.startswith("dev"))

    @property
    def test_splits(self) -> tuple[str, ...]:
        """`("test",)`, MNLI's `("test_matched", "test_mismatched")`, or `()`."""
        return tuple(split for split in self.splits if split.startswith("test"))

    @property
    def selection_split(self) -> str:
        """The split whose score selects the best model; raises `ConfigError` when there is no dev split."""
        if not self.dev_splits:
            raise ConfigError(
                f"task {self.name} has no dev split to select a model on: give it one, or hold out training rows with "
                "data.validation_fraction=0.1"
            )
        return self.dev_splits[0]


def _splits(*, train: tuple[int, ...], dev: int, test: int) -> dict[str, tuple[int, ...]]:
    """Row counts of a task with the three usual splits."""
    return {"train": train, "dev": (dev,), "test": (test,)}


_ENTAILMENT = ("entailment", "neutral", "contradiction")  # the hub's order, not the old processors'

_TASKS = (
    Task(
        name="cola",
        folder="CoLA",
        text_columns=("sentence",),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        splits=_splits(train=(8551,), dev=1043, test=1063),
    ),
    Task(
        name="sst2",
        folder="SST-2",
        text_columns=("sentence",),
        label_names=("negative", "positive"),
        metrics=("accuracy",),
        splits=_splits(train=(67349,), dev=872, test=1821),
    ),
    Task(
        name="mrpc",
        folder="MRPC",
        text_columns=("sentence1", "sentence2"),
        label_names=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        splits=_splits(train=(3668,), dev=408, test=1725),
    ),
    Task(
        name="stsb",
        folder="STS-B",
        text_columns=("sentence1", "sentence2"),
        metrics=("pearson", "spearmanr"),
        splits=_splits(train=(5749,), dev=1500, test=1379),
        score_range=(0.0, 5.0),
    ),
    Task(
        name="qqp",
        folder="QQP",
        text_columns=("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        splits=_splits(train=(363846, 363849), dev=40430, test=390965),  # two releases of train exist
    ),
    Task(
        name="mnli",
        folder="MNLI",
        text_columns=("premise", "hypothesis"),
        label_names=_ENTAILMENT,
        metrics=("accuracy",),
        splits={
            "train": (392702,),
            "dev_matched": (9815,),
            "dev_mismatched": (9832,),
            "test_matched": (9796,),
            "test_mismatched": (9847,),
        },
    ),
    Task(
        name="qnli",
        folder="QNLI",
        text_columns=("question", "sentence"),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        splits=_splits(train=(104743,), dev=5463, test=5463),
    ),
    Task(
        name="rte",
        folder="RTE",
        text_columns=("sentence1", "sentence2"),
        label_names=("entailment", "not_entailment"),
        metrics=("accuracy",),
        splits=_splits(train=(2490,), dev=277, test=3000),
    ),
    Task(
        name="wnli",
        folder="WNLI",
        text_columns=("sentence1", "sentence2"),
        label_names=("not_entailment", "entailment"),
        metrics=("accuracy",),
        splits=_splits(train=(635,), dev=71, test=146),
    ),
    Task(
        name="ax",
        folder="AX",
        text_columns=("premise", "hypothesis"),
        label_names=_ENTAILMENT,
        metrics=("matthews_correlation",),
        splits={"test": (1104,)},
    ),
)

GLUE: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TASKS})
"""The ten tasks by name, in the leaderboard's order with AX last."""


def get_task(name: str, also_known: Collection[str] = ()) -> Task:
    """The GLUE task of this name; raises `ConfigError` for an unknown one, which names those `also_known`."""
    if name in GLUE:
        return GLUE[name]
    hint = did_you_mean(name.lower().replace("-", ""), GLUE) or did_you_mean(name, also_known)
    raise ConfigError(f"unknown task {name!r}, known: {', '.join((*GLUE, *also_known))}{hint}")
