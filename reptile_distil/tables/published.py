"""Dev scores of six-layer students of BERT-base as others have published them, for a table's last rows."""

from __future__ import annotations

from typing import NamedTuple

Scores = dict[str, tuple[float, ...]]
"""GLUE task → its scores in percent, in the table's order; one number where only one was published."""


class PublishedRow(NamedTuple):
    """A row that was not run here."""

    name: str
    source: str
    scores: Scores
    average: str = "-"
    """The average as published, with the number of tasks in it."""
    parameters: str = "-"
    """Millions."""


PUBLISHED: tuple[PublishedRow, ...] = (
    PublishedRow(
        "ReptileDistil",
        "the authors' README",
        {
            "cola": (54.8,),
            "sst2": (92.2,),
            "mrpc": (91.6, 87.7),
            "stsb": (89.5, 89.3),
            "qqp": (87.6, 90.1),
            "mnli": (83.7, 83.7),
            "qnli": (90.5,),
            "rte": (75.3,),
        },
        average="83.05 (mean of 8)",
        parameters="66",
    ),
    PublishedRow(
        "BERT-base teacher",
        "MoEBERT table 1",
        {
            "cola": (54.7,),
            "sst2": (92.9,),
            "mrpc": (89.0, 84.1),
            "qqp": (88.3, 90.9),
            "mnli": (84.5, 84.4),
            "qnli": (91.1,),
            "rte": (63.5,),
        },
    ),
    PublishedRow(
        "TinyBERT-6 fine-tuned",
        "MoEBERT table 1, STS-B from SuperShaper",
        {
            "cola": (42.8,),
            "sst2": (91.6,),
            "mrpc": (88.4,),
            "stsb": (86.5,),
            "qqp": (90.6,),
            "mnli": (83.5,),
            "qnli": (90.5,),
            "rte": (72.2,),
        },
    ),
    PublishedRow(
        "fine-tuned, 6 layers",
        "PKD repository",
        {"sst2": (89.7,), "mrpc": (82.2,), "qqp": (90.1,), "mnli": (80.2, 80.3), "qnli": (87.4,), "rte": (66.1,)},
    ),
    PublishedRow(
        "vanilla KD-6",
        "PKD repository",
        {
            "cola": (42.2,),
            "sst2": (90.8,),
            "mrpc": (82.8,),
            "qqp": (90.5,),
            "mnli": (80.8, 80.8),
            "qnli": (88.7,),
            "rte": (67.5,),
        },
    ),
    PublishedRow(
        "PKD-6",
        "PKD repository",
        {"sst2": (91.1,), "mrpc": (83.5,), "qqp": (90.8,), "mnli": (82.2, 82.3), "qnli": (89.7,), "rte": (68.2,)},
    ),
    PublishedRow(
        "TinyBERT-6 with augmentation",
        "TinyBERT table 5",
        {
            "cola": (54.0,),
            "sst2": (93.0,),
            "mrpc": (90.6, 86.3),
            "stsb": (90.1, 89.6),
            "qqp": (88.0, 91.1),
            "mnli": (84.5, 84.5),
            "qnli": (91.1,),
            "rte": (73.4,),
        },
    ),
    PublishedRow(
        "DistilBERT-6",
        "TinyBERT table 5",
        {
            "cola": (51.3,),
            "sst2": (91.3,),
            "mrpc": (87.5,),
            "stsb": (86.9,),
            "qqp": (88.5,),
            "mnli": (82.2,),
            "qnli": (89.2,),
            "rte": (59.9,),
        },
    ),
    PublishedRow(
        "BERT-of-Theseus",
        "GLMKD",
        {
            "cola": (51.1,),
            "sst2": (91.5,),
            "mrpc": (89.0,),
            "stsb": (88.7,),
            "qqp": (89.6,),
            "mnli": (82.3,),
            "qnli": (89.5,),
            "rte": (68.2,),
        },
    ),
    PublishedRow(
        "MetaDistil, rerun by others",
        "MetaDistil repository issue 5",
        {
            "sst2": (91.3,),
            "mrpc": (89.4, 84.3),
            "stsb": (88.3, 88.0),
            "qqp": (87.2, 90.4),
            "mnli": (81.3,),
            "qnli": (87.9,),
            "rte": (69.3,),
        },
    ),
)
"""In the order of a table."""
