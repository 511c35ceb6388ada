"""The part of a run's configuration that describes a task of the user's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from reptile_distil.config.sections import PathText, Section
from reptile_distil.metric_names import fault_in_metrics, fault_in_names


class OwnTaskConfig(Section):
    """A task of the user's own: files, columns, labels and metrics, no code."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
    """Used in the names of run folders: letters, digits, `_`, `.` and `-`; the first is no `.` or `-`."""
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Column(s) that hold the sentence, or the two sentences of a pair."""
    label: str | tuple[str, ...] = "label"
    """Column that holds the label; for a multi-label task also a list of columns that hold 0 or 1, one for each."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order; empty for a regression task, and where a saved or hub data set has names."""
    multi_label: bool = False
    """Whether a row has any number of the labels, as a list (JSON) or a text with `label_separator` (CSV)."""
    label_separator: str = Field(",", min_length=1)
    """What stands between the labels of a row that are one text (multi_label)."""
    metrics: tuple[str, ...] = Field(min_length=1)
    """Scores to report; the mean of them chooses the best epoch."""
    files: dict[str, PathText] = Field(default_factory=dict)
    """File of each split (train, dev, test), relative to `data.path`: .csv, .tsv, .json or .jsonl (also .gz), .parquet,
    or a folder saved by `datasets`; null: none, where a file that is extended has one."""
    quoting: Literal["csv", "none"] | None = None
    """Whether quotation marks around fields of a CSV or TSV file are quotes (csv) or text (none); null: as it shows."""
    hub: str | None = Field(None, pattern=r"^(\w[\w.-]*/)?\w[\w.-]*$")
    """Data set of the hub (owner/name) instead of files; code in it is never run."""
    config: str | None = None
    """Which configuration of that data set; null: its only one, or its default."""
    revision: str | None = None
    """Commit, tag or branch of that data set; null: main. Only a commit always means the same rows."""
    splits: dict[str, str] = Field(default_factory=dict)
    """That data set's name of each split; empty: {train: train, dev: validation}."""

    @field_validator("files", "splits", mode="before")
    @classmethod
    def _without_null(cls, splits: Any) -> Any:
        """A split that is null is left out: that of a file that this one extends."""
        return {name: file for name, file in splits.items() if file is not None} if isinstance(splits, dict) else splits

    @field_validator("files", "splits")
    @classmethod
    def _splits_are_known(cls, splits: dict[str, str]) -> dict[str, str]:
        for split in splits:
            if split not in ("train", "dev", "test"):
                raise ValueError(f"{split!r} is no split: expected train, dev or test")
        return splits

    @model_validator(mode="after")
    def _has_one_source(self) -> OwnTaskConfig:
        if bool(self.files) == (self.hub is not None):
            raise ValueError("give either files, the file of each split, or hub, the name of a data set on the hub")
        for key in ("config", "revision", "splits"):
            if getattr(self, key) and self.hub is None:
                raise ValueError(f"{key} belongs to hub, but the task has files")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> OwnTaskConfig:
        columns = () if isinstance(self.label, str) else self.label
        if columns and (len(columns) < 2 or len(set(columns)) < len(columns)):
            raise ValueError("label: give one column, or a list of two or more different ones (multi-label)")
        if columns and self.labels and len(columns) != len(self.labels):
            raise ValueError(f"labels names {len(self.labels)} labels, but label names {len(columns)} columns")
        has_names = bool(self.labels or columns)
        may_be_named_by_data = self.hub is not None or any(not _is_text_file(file) for file in self.files.values())
        if has_names or not may_be_named_by_data:
            fault = fault_in_metrics(
                self.metrics, num_labels=len(self.labels or columns), multi_label=self.has_label_sets
            )
            if fault is None and self.has_label_sets:
                fault = fault_in_names(self.labels or columns, self.label_separator)
            if fault is not None:
                raise ValueError(fault)
        return self

    @property
    def has_label_sets(self) -> bool:
        """Whether the task is multi-label."""
        return self.multi_label or not isinstance(self.label, str)

    @property
    def hub_splits(self) -> dict[str, str]:
        """Our names of the hub data set's splits, with theirs."""
        return self.splits or {"train": "train", "dev": "validation"}


def _is_text_file(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".json", ".jsonl"))
