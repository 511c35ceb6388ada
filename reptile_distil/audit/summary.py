"""The audit in numbers: each teacher's step as a fraction of what an ordinary one gains, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from reptile_distil.audit.one_step import BEFORE, FROZEN, KNOWS, MOVED, OTHER, SO_FAR, Stage
from reptile_distil.runtime.text_tables import markdown_table
from reptile_distil.tables.statistics import expanded_level

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95
_MAX_DRAWN = 2**23
"""Numbers that are drawn at a time: 64 MB for each of the few arrays of that size."""


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


EFFECTS = {"one_move": (SO_FAR, MOVED), "so_far": (FROZEN, SO_FAR), "other": (FROZEN, OTHER)}
"""What each effect compares: the loss after a step from the first teacher minus that from the second."""

_HEADINGS = {"one_move": "one move", "so_far": "moved so far", "other": "the other teacher"}


class StageSummary(NamedTuple):
    """One point of a run."""

    step: int
    num_batches: int
    gain: Estimate
    """By how much one step of `kd` from the frozen teacher lowers the student's loss on other rows."""
    effects: dict[str, Estimate | None]
    """What the student gains beyond that, as a fraction of it; None where an ordinary step gains nothing for sure."""
    differences: dict[str, Estimate]
    """The same in units of the loss."""
    knows: float | None
    """Of equation 2's difference, the fraction that the batch has a say in (mean over batches)."""


def summarise(stage: Stage) -> StageSummary:
    """The stage's gain and effects, with intervals of a bootstrap over its batches and the held-out rows.

    Both are samples: of what another batch would have taught, and of what other rows would have said of it, and the
    same held-out rows are drawn for many batches. Where the stage has no `by_row`, its batches alone are drawn.
    """
    measured = {name: compared for name, compared in EFFECTS.items() if stage.column(compared[1])}
    gain, *of_effects = (_difference(stage, *compared) for compared in ((BEFORE, FROZEN), *measured.values()))
    draws = Draws(*_batches_and_rows(stage))
    numbers = draws.sums(np.stack([np.ones_like(gain), gain, *of_effects]))
    mean, *means = (draws.ratio(of_one, numbers[0]) for of_one in numbers[1:])
    ratios = [draws.ratio(of_one, numbers[1]) if mean.low > 0 else None for of_one in numbers[2:]]
    knows = stage.column(KNOWS)
    return StageSummary(
        stage.step,
        len(stage.measured),
        mean,
        dict(zip(measured, ratios, strict=True)),
        dict(zip(measured, means, strict=True)),
        float(np.mean(knows)) if knows else None,
    )


def _difference(stage: Stage, worse: str, better: str) -> NDArray[np.float64]:
    """By how much the second loss is below the first: of each row of each batch, or of each batch."""
    if not stage.by_row:
        return np.subtract(stage.column(worse), stage.column(better))
    return np.concatenate([of.losses[worse] - of.losses[better] for of in stage.by_row])


def _batches_and_rows(stage: Stage) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Of which batch, and of which held-out row, each of the differences is."""
    if not stage.by_row:
        return np.arange(len(stage.measured)), None
    batches = np.repeat(np.arange(len(stage.by_row)), [len(of.rows) for of in stage.by_row])
    return batches, np.concatenate([of.rows for of in stage.by_row])


def mean_with_interval(values: ArrayLike) -> Estimate:
    """The mean of values (N,), each of a batch of its own."""
    return ratio_of_means(values, np.ones_like(np.asarray(values, dtype=float)))


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike, *, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """mean(numerator) / mean(denominator) of pairs (N,), each of a batch of its own.

    >>> ratio_of_means([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    pairs = np.asarray([numerator, denominator], dtype=float)
    draws = Draws(np.arange(pairs.shape[1]), num_resamples=num_resamples)
    return draws.ratio(*draws.sums(pairs))


class Draws:
    """A bootstrap: batches, and where they are known the rows they were measured on, are drawn with replacement.

    A value counts as often as its batch was drawn times its row (Owen: The pigeonhole bootstrap. Annals of Applied
    Statistics 1, 2007), which makes intervals a little too wide rather than too narrow. Of few batches or rows the
    percentiles are taken further out, as in `compare_paired`, which says how little 2 or 3 can show.

    Args:
        batches: of which batch each of N values is, (N,).
        rows: of which row each is, (N,), no two of a batch of the same one.
    """

    def __init__(
        self, batches: NDArray[np.int64], rows: NDArray[np.int64] | None = None, *, num_resamples: int = NUM_RESAMPLES
    ) -> None:
        _, self._batch_of = np.unique(batches, return_inverse=True)
        _, self._row_of = np.unique(np.zeros_like(batches) if rows is None else rows, return_inverse=True)
        self._shape = int(self._batch_of.max()) + 1, int(self._row_of.max()) + 1
        self._num_resamples = num_resamples
        smallest = self._shape[0] if rows is None else min(self._shape)
        level = expanded_level(CONFIDENCE, smallest) if smallest > 1 else 1.0
        self._ends = (1 - level) / 2, (1 + level) / 2

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the N of each column of values (columns, N), as they are and as drawn: (columns, 1 + resamples)."""
        cells = [sparse.csr_array((column, (self._batch_of, self._row_of)), shape=self._shape) for column in values]
        generator, sums = np.random.default_rng(0), [values.sum(axis=1, keepdims=True)]
        at_once = max(1, _MAX_DRAWN // max(self._shape))
        with np.errstate(invalid="ignore"):  # a loss that is not finite leaves no interval
            for start in range(0, self._num_resamples, at_once):
                num = min(at_once, self._num_resamples - start)
                of_batches, of_rows = (_times_drawn(generator, num, size) for size in self._shape)
                sums.append(np.stack([(of_batches * (of_cells @ of_rows)).sum(axis=0) for of_cells in cells]))
        return np.concatenate(sums, axis=1)

    def ratio(self, top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Estimate:
        """One column's sums over another's, (1 + resamples,) both."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value, *resampled = top / bottom
            low, high = np.quantile(resampled, self._ends)
        return Estimate(float(value), float(low), float(high))


def _times_drawn(generator: np.random.Generator, num: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` is drawn when `size` are, with replacement, in each of `num` draws: (size, num)."""
    if size == 1:
        return np.ones((1, num))
    drawn = generator.integers(size, size=(size, num)) * num + np.arange(num)
    return np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num).astype(float)


def to_markdown(stages: Sequence[StageSummary]) -> str:
    """A row for each stage; fractions in percent, or where there are none, differences of the loss."""
    names = [name for name in EFFECTS if any(name in stage.effects for stage in stages)]
    has_known = any(stage.knows is not None for stage in stages)
    header = ["after step", "batches", "a step of kd gains", *(f"{_HEADINGS[name]}, % of it" for name in names)]
    header += ["knows the batch, %"] if has_known else []
    rows = []
    for stage in stages:
        row = [str(stage.step), str(stage.num_batches), "{:.2g} [{:.2g}, {:.2g}]".format(*stage.gain)]
        for name in names:
            if name not in stage.effects:
                row.append("-")
                continue
            effect = stage.effects[name]
            row.append(_in_loss(stage.differences[name]) if effect is None else _in_percent(effect))
        if has_known:
            row.append("-" if stage.knows is None else f"{100 * stage.knows:.2f}")
        rows.append(row)
    return markdown_table(header, rows)


def to_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Summary and raw values of each stage."""
    written = []
    for stage in stages:
        summary = summarise(stage)
        written.append(
            {
                "step": stage.step,
                "gain": _finite(summary.gain._asdict()),
                "effects": {name: of and _finite(of._asdict()) for name, of in summary.effects.items()},
                "differences": {name: _finite(of._asdict()) for name, of in summary.differences.items()},
                "knows": summary.knows,
                "batches": [_finite(of_batch) for of_batch in stage.measured],
            }
        )
    return written


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no word for the others."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _in_loss(estimate: Estimate) -> str:
    return "{:+.1e} [{:+.1e}, {:+.1e}] of the loss".format(*estimate)


def _in_percent(estimate: Estimate) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * number for number in estimate))
