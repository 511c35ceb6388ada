"""The GLUE table, and the description of a user's own task.

Nothing is read or loaded here: `sources.load_split` does that with a `Task` in hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reptile_distil.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of a model: text columns in, one class of `label_names` or one real number out.

    Raises `ConfigError` when the fields contradict each other.
    """

    name: str
    """Key in the YAML files: `sst2`, not `SST-2`."""
    text_columns: tuple[str, ...]
    """One or two columns, named as in the hub's data set or in the user's own files."""
    label_column: str = "label"
    label_names: tuple[str, ...] = ()
    """Class names; the class index is the position in this tuple. Empty: regression."""
    metrics: tuple[str, ...]
    """Keys as in `evaluate`. The score that selects a model is their mean on `selection_split`."""
    splits: Mapping[str, tuple[int, ...]]
    """Split name -> the row counts it may have; an empty tuple leaves the count unchecked."""
    score_range: tuple[float, float] | None = None
    """Smallest and largest regression label; None: any finite number."""
    folder: str | None = None
    """Folder of GLUE's own TSV files (`SST-2`); None for other tasks."""
    files: Mapping[str, str] | None = None
    """A user's own task: split name -> CSV, TSV or JSONL file; None for other tasks."""
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
        allowed = ("accuracy", "f1", "matthews_correlation") if names else ("pearson", "spearmanr")
        for metric in self.metrics:
            if metric not in allowed or (metric == "f1" and len(names) != 2):
                kind = f"a task with {len(names)} classes" if names else "a regression task"
                raise ConfigError(f"task {self.name}: {metric} is no metric of {kind}")
        if self.folder is not None and self.files is not None:
            raise ConfigError(f"task {self.name}: folder is for GLUE and files for a task of your own, not both")
        if self.files is not None and set(self.files) != set(self.splits):
            raise ConfigError(
                f"task {self.name}: files names the splits {sorted(self.files)}, but splits names {sorted(self.splits)}"
            )

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
            raise ConfigError(f"task {self.name} has no dev split to select a model on")
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


def get_task(name: str) -> Task:
    """The GLUE task of this name; raises `ConfigError` for an unknown one."""
    if name in GLUE:
        return GLUE[name]
    hint = did_you_mean(name.lower().replace("-", ""), GLUE)
    raise ConfigError(f"unknown task {name!r}, known: {', '.join(GLUE)}{hint}")
