"""Counts what a training step asks of a GPU: `python -m tests.pretend_gpu.counts` prints a table.

BERTs of 12 and 6 layers without dropout in bfloat16, on a batch of 32 rows of SST-2's lengths, of median size; the
second step of each method. Attention counts as one kernel. Not counted: what a library launches within one operation.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tests.pretend_gpu import build

if __name__ == "__main__":
    build.load()  # before torch

import numpy as np
import torch
import transformers

from reptile_distil.benchmark.steps import Case, Settings, grouped_rows
from reptile_distil.data.batches import Batches
from reptile_distil.data.features import Features
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.runtime.text_tables import markdown_table
from tests.pretend_gpu.device import GPU, Counts
from tests.pretend_gpu.torch_cuda import install

METHODS = ("finetune", "kd", "reptile", "reptile interpolate", "student-first", "student-first interpolate")


def bert(num_layers: int, width: int, seed: int) -> Any:
    """A model in BERT's shape, on the device."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        num_hidden_layers=num_layers,
        hidden_size=width,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config).to("cuda")


def median_batch() -> dict[str, torch.Tensor]:
    """As a run makes it."""
    (lengths,) = grouped_rows(Case("sst2"), Settings(num_batches=1))
    ids = np.random.default_rng(0).integers(1000, 30000, lengths.sum())
    columns = {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    features = Features.end_to_end(columns, lengths, labels=np.arange(len(lengths)) % 2)
    batches = Batches(features, toy_tokenizer(), batch_size=len(lengths), device="cuda", bias_dtype=torch.bfloat16)
    return batches.batch(np.arange(len(lengths)))


def build_method(name: str, depths: tuple[int, int], width: int) -> Any:
    """The method, in bfloat16."""
    kind, _, update = name.partition(" ")
    student = Student(bert(depths[1], width, 2), autocast_dtype=torch.bfloat16)
    optimizer = adamw(student, lr=5e-5)
    if kind == "finetune":
        return FineTuner(student, student_optimizer=optimizer)
    teacher = Teacher(bert(depths[0], width, 1), autocast_dtype=torch.bfloat16)
    shared = {"loss": DistillationLoss(), "student_optimizer": optimizer}
    if kind == "kd":
        return KnowledgeDistiller(teacher, student, **shared)
    if update == "interpolate":
        mover: Any = torch.optim.SGD(teacher.parameters(), lr=1e-4, fused=True)
    else:
        mover = adamw(teacher, lr=5e-5)
    order = "student_first" if kind == "student-first" else "teacher_first"
    update = update or "adamw"
    return ReptileDistiller(teacher, student, **shared, teacher_optimizer=mover, order=order, update=update)


def count(name: str, *, depths: tuple[int, int] = (12, 6), width: int = 384) -> tuple[Counts, int]:
    """What the method's second step asks of the device, and how often it waits for it."""
    GPU.fused_attention = True
    method, batch = build_method(name, depths, width), median_batch()
    try:
        for _ in range(2):
            GPU.forget()
            method.step(batch)
    finally:
        GPU.fused_attention = False
    counts, num_waits = GPU.counts, len(GPU.waits)
    GPU.forget()  # what is done next counts elsewhere
    return counts, num_waits


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--launches", action="store_true", help="list the most frequent operations too")
    options = parser.parse_args()
    rows = []
    for name in options.methods:
        counts, waits = count(name, width=options.width)
        rows.append(
            [name, str(counts.num_launches), str(counts.num_casts), f"{counts.num_bytes / 1e9:.2f}", str(waits)]
        )
        if options.launches:
            sys.stdout.write(f"{name}: {counts.launches.most_common(40)}\n")
    sys.stdout.write(markdown_table(["method", "launches", "casts", "GB moved", "waits"], rows) + "\n")


if __name__ == "__main__":
    install()
    main()
