"""The part of a run's configuration that says where the rows come from, and which of them have labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reptile_distil.config.sections import PathText, Section


class TransferConfig(Section):
    """Transfer rows: without labels, beside the labelled ones; on them the student learns from its teacher alone.

    They come from `files`, or are the training rows whose labels are hidden by `fraction` or `labelled_rows`: without
    one of the three there are none.
    """

    files: tuple[PathText, ...] = ()
    """Files of them, relative to `data.path`, of the kinds of an own task's, with the task's text columns; a label
    column is not read."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Fraction of the training rows whose labels are hidden from teacher and student."""
    labelled_rows: int | None = Field(None, ge=1)
    """How many training rows keep their labels, those of `validation_fraction` not counted; of all others they are
    hidden from teacher and student."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Which of them (fraction, labelled_rows): another draw, the same for all methods and seeds of a run."""
    skip: int = Field(0, ge=0)
    """How many rows of that draw come before those that keep their labels: with 512 labelled rows, skip 0 and skip 512
    have none in common."""
    ratio: float = Field(1.0, ge=0, le=1000)
    """Transfer rows for each labelled row of a batch, which has `train.batch_size` rows in all; 0: the labelled rows
    alone (the control of fraction and labelled_rows). An epoch is one pass over the labelled rows."""

    @property
    def hides_labels(self) -> bool:
        """Whether training rows become transfer rows."""
        return self.fraction is not None or self.labelled_rows is not None

    @property
    def is_on(self) -> bool:
        """Whether there are transfer rows, or would be with another ratio."""
        return bool(self.files) or self.hides_labels

    def rows_per_batch(self, batch_size: int) -> int:
        """How many rows of a batch are transfer rows. Raises `ValueError` where one of the two kinds has no room."""
        if not self.is_on or not self.ratio:
            return 0
        num_transfer = round(batch_size * self.ratio / (1 + self.ratio))
        if not 0 < num_transfer < batch_size:
            kind = "labelled" if num_transfer else "transfer"
            raise ValueError(
                f"data.transfer.ratio = {self.ratio:g} leaves no {kind} row in a batch of train.batch_size = "
                f"{batch_size}: give another ratio or a larger batch_size"
            )
        return num_transfer

    @model_validator(mode="after")
    def _options_fit(self) -> TransferConfig:
        given = [name for name in ("files", "fraction", "labelled_rows") if getattr(self, name) not in ((), None)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different ways to say which rows have no labels: give one")
        if not given and (self.ratio != 1 or self.seed or self.skip):
            name = "ratio" if self.ratio != 1 else "seed" if self.seed else "skip"
            raise ValueError(f"{name} has no effect without transfer rows: give files, fraction or labelled_rows too")
        if self.files and (self.seed or self.skip or not self.ratio):
            drawn = "seed" if self.seed else "skip" if self.skip else None
            fault = f"{drawn} is about fraction and labelled_rows" if drawn else "ratio = 0 leaves no use for files"
            raise ValueError(f"{fault}: leave one of them out")
        if len(set(self.files)) < len(self.files):
            raise ValueError("a file is given twice")
        return self


class DataConfig(Section):
    """Where the examples come from and how long they may be."""

    path: PathText | None = None
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
    cache_dir: PathText | Literal[False] | None = None
    """Folder that keeps tokenised data for the next run; null: reptile_distil in HF_HOME or ~/.cache; false: none."""
    transfer: TransferConfig = TransferConfig()
