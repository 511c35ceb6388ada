"""The offline world: four generated tasks with real signal, a small vocabulary, and small random BERTs.

Nothing is downloaded or read from disk. A task is fixed: its examples never depend on a run's seed. One training
label in ten is wrong, so that a model that has seen more can teach one that has seen less.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import transformers

from reptile_distil.errors import DataError
from reptile_distil.tasks import Task

NUM_ROWS = {"train": 2000, "dev": 500, "test": 500}
LABEL_NOISE = 0.1  # fraction of training labels replaced; dev and test are clean

_POSITIVE = "good great lovely warm clever bright honest gentle funny moving".split()
_NEGATIVE = "bad awful ugly cold stupid dull false cruel boring clumsy".split()
_NEGATORS = ("not", "never")
_FILLERS = (
    "the a this film story plot actor scene music ending was felt seemed looked and with very quite rather".split()
)
# Each row is one concept; its words mean the same.
_AGENTS = ("cat kitten", "dog puppy", "man gentleman", "woman lady", "child kid", "bird sparrow")
_ACTIONS = ("runs races", "sleeps rests", "eats dines", "sings hums", "jumps leaps", "reads studies")
_PLACES = ("house home", "street road", "forest woods", "sea ocean", "school class", "market shop")
_SLOTS = tuple(tuple(tuple(words.split()) for words in slot) for slot in (_AGENTS, _ACTIONS, _PLACES))

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = sorted({*_POSITIVE, *_NEGATIVE, *_NEGATORS, *_FILLERS, "in"} | {w for s in _SLOTS for c in s for w in c})

_MODEL_NAME = re.compile(r"toy-bert-(\d+)L-(\d+)H")


def _task(name: str, **fields: Any) -> Task:
    rows = {split: (count,) for split, count in NUM_ROWS.items()}
    return Task(name=name, splits=rows, **fields)


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
                label_names=("different", "equivalent"),
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
"""toy-sentence: sentiment with negation; toy-pair: paraphrases; toy-threeway: inference; toy-regression: similarity."""


def load_split(task: Task, split: str) -> datasets.Dataset:
    """The rows of a toy task's split: columns `text`, `text_pair` for pairs, and `label`; always the same."""
    if split not in NUM_ROWS:
        raise DataError(f"task {task.name}: no split {split!r}; it has {', '.join(NUM_ROWS)}")
    rng = np.random.default_rng(zlib.crc32(f"{task.name}/{split}".encode()))
    make = _GENERATORS[task.name]
    rows = [make(rng) for _ in range(NUM_ROWS[split])]
    labels = [row[-1] for row in rows]
    if split == "train":
        labels = [_noisy(label, task.num_labels, rng) for label in labels]
    columns: dict[str, list[Any]] = {"text": [row[0] for row in rows]}
    if task.is_pair:
        columns["text_pair"] = [row[1] for row in rows]
    return datasets.Dataset.from_dict({**columns, "label": labels})


def is_toy_model(name: str) -> bool:
    """Whether `name` is that of a toy model: `toy-bert-4L-64H` has 4 layers of width 64."""
    return _MODEL_NAME.fullmatch(name) is not None


def model_config(name: str) -> transformers.BertConfig:
    """The configuration of a toy model; its weights are drawn where the model is made."""
    match = _MODEL_NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{name!r} is no toy model: expected a name such as toy-bert-4L-64H")
    num_layers, width = map(int, match.groups())
    return transformers.BertConfig(
        vocab_size=len(_SPECIAL) + len(_WORDS),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=64,
        initializer_range=0.05,  # wider than BERT's 0.02: these models learn from nothing
    )


def tokenizer() -> Any:
    """The tokenizer of every toy model: one token a word."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *_WORDS))}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)


def _noisy(label: Any, num_labels: int, rng: np.random.Generator) -> Any:
    if num_labels == 1:
        return float(np.clip(label + rng.normal(scale=0.5), 0, 5))
    if rng.random() < LABEL_NOISE:
        return int((label + rng.integers(1, num_labels)) % num_labels)
    return label


def _sentiment(rng: np.random.Generator) -> tuple[str, int]:
    """Up to three opinions among fillers; a negator in front of an opinion turns it round."""
    words = list(rng.choice(_FILLERS, size=rng.integers(4, 10)))
    total = 0
    for _ in range(rng.choice([1, 3])):
        polarity = int(rng.choice([-1, 1]))
        opinion = [str(rng.choice(_POSITIVE if polarity > 0 else _NEGATIVE))]
        if rng.random() < 0.4:
            opinion.insert(0, str(rng.choice(_NEGATORS)))
            polarity = -polarity
        total += polarity
        place = int(rng.integers(0, len(words) + 1))
        words[place:place] = [" ".join(opinion)]
    return " ".join(map(str, words)), int(total > 0)


def _say(concepts: list[int], rng: np.random.Generator, negated: bool = False) -> str:
    """A sentence about an agent, an action and a place, in freely chosen words."""
    agent, action, place = (str(rng.choice(_SLOTS[slot][concept])) for slot, concept in enumerate(concepts))
    return f"the {agent} {'never ' if negated else ''}{action} in the {place}"


def _another(concept: int, rng: np.random.Generator) -> int:
    return int((concept + rng.integers(1, len(_AGENTS))) % len(_AGENTS))


def _concepts(rng: np.random.Generator) -> list[int]:
    return [int(concept) for concept in rng.integers(0, len(_AGENTS), size=len(_SLOTS))]


def _paraphrase(rng: np.random.Generator) -> tuple[str, str, int]:
    """Equivalent: the same three concepts; different: one or two of them changed."""
    first = _concepts(rng)
    second = list(first)
    equivalent = int(rng.integers(0, 2))
    if not equivalent:
        for slot in rng.permutation(len(_SLOTS))[: rng.integers(1, 3)]:
            second[slot] = _another(second[slot], rng)
    return _say(first, rng), _say(second, rng), equivalent


def _inference(rng: np.random.Generator) -> tuple[str, str, int]:
    """Entailment: the same; contradiction: the same, denied on one side; neutral: another agent or place."""
    first = _concepts(rng)
    second = list(first)
    relation = int(rng.integers(0, 3))
    if relation == 1:
        slot = int(rng.choice([0, 2]))
        second[slot] = _another(second[slot], rng)
    denied = bool(rng.integers(0, 2))
    return _say(first, rng, denied), _say(second, rng, denied != (relation == 2)), relation


def _similarity(rng: np.random.Generator) -> tuple[str, str, float]:
    """Five thirds of a point for each concept that both sentences share."""
    first = _concepts(rng)
    shared = int(rng.integers(0, len(_SLOTS) + 1))
    second = list(first)
    for slot in rng.permutation(len(_SLOTS))[shared:]:
        second[slot] = _another(second[slot], rng)
    return _say(first, rng), _say(second, rng), round(5 * shared / len(_SLOTS), 3)


_GENERATORS: Mapping[str, Callable[[np.random.Generator], tuple[Any, ...]]] = {
    "toy-sentence": _sentiment,
    "toy-pair": _paraphrase,
    "toy-threeway": _inference,
    "toy-regression": _similarity,
}
