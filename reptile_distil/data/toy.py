"""The offline world: four generated tasks with real signal and a small vocabulary (`models.toy` has its BERTs).

Nothing is downloaded or read from disk. A task is fixed: its examples never depend on a run's seed. In
training, one class label in ten is wrong and ratings carry noise, so that a teacher can know better than the labels.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from reptile_distil.data.rows import Rows
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError

if TYPE_CHECKING:
    import datasets


NUM_ROWS = {"train": 2000, "dev": 500, "test": 500}
LABEL_NOISE = 0.1  # fraction of training labels replaced; dev and test are clean
RATING_NOISE = 0.5  # standard deviation, in points of 0 to 5
_POSITIVE = "good great lovely warm clever bright honest gentle funny moving".split()
_NEGATIVE = "bad awful ugly cold stupid dull false cruel boring clumsy".split()
_NEGATORS = ("not", "never")
_FILLERS = (
    "the a this film story plot actor scene music ending was felt seemed looked and with very quite rather".split()
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = sorted({*_POSITIVE, *_NEGATIVE, *_NEGATORS, *_FILLERS})
VOCABULARY = (*_SPECIAL, *_WORDS)
"""Tokens of the toy models; a token's number is its place."""


def _task(name: str, **fields: Any) -> Task:
    rows = {split: (count,) for split, count in NUM_ROWS.items()}
    return Task(name=name, splits=rows, is_generated=True, **fields)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            _task(
                "toy-sentence",
                text_columns=("sentence",),
                label_names=("negative", "positive"),
                metrics=("accuracy",),
            ),
            _task(
                "toy-pair",
                text_columns=("sentence1", "sentence2"),
                label_names=("worse", "better"),
                metrics=("f1", "accuracy"),
            ),
            _task(
                "toy-threeway",
                text_columns=("premise", "hypothesis"),
                label_names=("entailment", "neutral", "contradiction"),
                metrics=("accuracy",),
            ),
            _task(
                "toy-regression",
                text_columns=("sentence1", "sentence2"),
                metrics=("pearson", "spearmanr"),
                score_range=(0.0, 5.0),
            ),
        )
    }
)
"""By name.

toy-sentence: are most opinions in a review positive? toy-pair: is the second review better than the first?
toy-threeway: better (entailment), as good (neutral) or worse (contradiction)? toy-regression: five times the fraction
of positive opinions in both reviews together.
"""


def load_split(task: Task, split: str) -> datasets.Dataset:
    """The rows of a toy task's split: columns `text`, `text_pair` for pairs, and `label`; always the same."""
    import datasets  # takes a second, and the toy models do without

    if split not in NUM_ROWS:
        raise DataError(f"task {task.name}: no split {split!r}; it has {', '.join(NUM_ROWS)}")
    columns = _make_columns(task.name, split)
    return datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})


def read_split(task: Task, split: str) -> Rows:
    """The same rows, as a file's are read."""
    columns = _make_columns(task.name, split)
    texts = tuple(columns[name] for name in ("text", "text_pair") if name in columns)
    return Rows(f"{task.name} {split}", texts, list(columns["label"]))


@functools.cache
def _make_columns(name: str, split: str) -> dict[str, tuple[Any, ...]]:
    """The columns of a split; making them takes longer than a tiny run, and a process often has several runs."""
    task = TASKS[name]
    rng = np.random.default_rng(zlib.crc32(f"{name}/{split}".encode()))
    rows = [_GENERATORS[name](rng) for _ in range(NUM_ROWS[split])]
    labels = [row[-1] for row in rows]
    if split == "train":
        labels = [_noisy(label, task.num_labels, rng) for label in labels]
    columns = {"text": tuple(row[0] for row in rows)}
    if task.is_pair:
        columns["text_pair"] = tuple(row[1] for row in rows)
    return {**columns, "label": tuple(labels)}


def _noisy(label: Any, num_labels: int, rng: np.random.Generator) -> Any:
    if num_labels == 1:
        return float(np.clip(label + rng.normal(scale=RATING_NOISE), 0, 5))
    if rng.random() < LABEL_NOISE:
        return int((label + rng.integers(1, num_labels)) % num_labels)
    return label


def _review(polarities: Sequence[int], rng: np.random.Generator, *, negations: float = 0.0) -> str:
    """Fillers with one opinion for each polarity (1 or -1) among them, in any order.

    The fraction `negations` of the opinions is said by the opposite word behind a negator.
    """
    parts = [str(word) for word in rng.choice(_FILLERS, size=rng.integers(3, 7))]
    for polarity in polarities:
        negated = rng.random() < negations
        word = str(rng.choice(_POSITIVE if (polarity > 0) != negated else _NEGATIVE))
        opinion = f"{rng.choice(_NEGATORS)} {word}" if negated else word
        parts.insert(int(rng.integers(0, len(parts) + 1)), opinion)
    return " ".join(parts)


def _polarities(count: int, rng: np.random.Generator) -> list[int]:
    return [int(polarity) for polarity in rng.choice([-1, 1], size=count)]


def _sentence(rng: np.random.Generator) -> tuple[str, int]:
    """Positive: more positive than negative opinions, of one or three."""
    polarities = _polarities(int(rng.choice([1, 3])), rng)
    return _review(polarities, rng, negations=1 / 3), int(sum(polarities) > 0)


def _two_reviews(rng: np.random.Generator, *, sign: int) -> tuple[str, str]:
    """Two reviews of one to three opinions; the second is more positive (sign 1), as positive (0) or less (-1)."""
    while True:
        first, second = (_polarities(int(rng.integers(1, 4)), rng) for _ in range(2))
        if np.sign(sum(second) - sum(first)) == sign:
            return _review(first, rng, negations=0.1), _review(second, rng, negations=0.1)


def _pair(rng: np.random.Generator) -> tuple[str, str, int]:
    better = int(rng.integers(0, 2))
    return *_two_reviews(rng, sign=2 * better - 1), better


def _threeway(rng: np.random.Generator) -> tuple[str, str, int]:
    relation = int(rng.integers(0, 3))
    return *_two_reviews(rng, sign=1 - relation), relation


def _regression(rng: np.random.Generator) -> tuple[str, str, float]:
    first, second = (_polarities(int(rng.integers(1, 4)), rng) for _ in range(2))
    opinions = [*first, *second]
    score = 5 * opinions.count(1) / len(opinions)
    return _review(first, rng, negations=0.1), _review(second, rng, negations=0.1), round(score, 3)


_GENERATORS: Mapping[str, Callable[[np.random.Generator], tuple[Any, ...]]] = {
    "toy-sentence": _sentence,
    "toy-pair": _pair,
    "toy-threeway": _threeway,
    "toy-regression": _regression,
}
