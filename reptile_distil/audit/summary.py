"""The audit in numbers: each teacher's step as a fraction of what an ordinary one gains, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from reptile_distil.audit.one_step import BEFORE, FROZEN, KNOWS, MOVED, OTHER, SO_FAR, Stage
from reptile_distil.runtime.text_tables import markdown_table

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


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
    """The stage's gain and effects, with percentile intervals of a bootstrap over its batches."""
    before, frozen = (np.asarray(stage.column(name)) for name in (BEFORE, FROZEN))
    gain = mean_with_interval(before - frozen)
    effects: dict[str, Estimate | None] = {}
    differences: dict[str, Estimate] = {}
    for effect, (base, better) in EFFECTS.items():
        if stage.column(better):
            difference = np.asarray(stage.column(base)) - np.asarray(stage.column(better))
            effects[effect] = ratio_of_means(difference, before - frozen) if gain.low > 0 else None
            differences[effect] = mean_with_interval(difference)
    knows = stage.column(KNOWS)
    return StageSummary(stage.step, len(before), gain, effects, differences, float(np.mean(knows)) if knows else None)


def mean_with_interval(values: ArrayLike) -> Estimate:
    """The mean of values (N,)."""
    return ratio_of_means(values, np.ones_like(np.asarray(values, dtype=float)))


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike, *, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """mean(numerator) / mean(denominator) of pairs (N,), which are drawn together with replacement.

    >>> ratio_of_means([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    drawn = np.random.default_rng(0).integers(len(top), size=(num_resamples, len(top)))
    with np.errstate(divide="ignore"):
        resampled = top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


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
                "gain": summary.gain._asdict(),
                "effects": {name: of and of._asdict() for name, of in summary.effects.items()},
                "differences": {name: of._asdict() for name, of in summary.differences.items()},
                "knows": summary.knows,
                "batches": [dict(of_batch) for of_batch in stage.measured],
            }
        )
    return written


def _in_loss(estimate: Estimate) -> str:
    return "{:+.1e} [{:+.1e}, {:+.1e}] of the loss".format(*estimate)


def _in_percent(estimate: Estimate) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * number for number in estimate))
