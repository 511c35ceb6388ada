"""What both peers do alike: options, rows, the loss, and what they print at the end."""

import argparse
import json
import sys
from pathlib import Path

import torch.nn.functional as F  # noqa: N812

MAX_LENGTH = 128
ALPHA, TEMPERATURE = 0.5, 5.0


def options():
    parser = argparse.ArgumentParser()
    for name in ("data", "teacher", "student", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    return parser.parse_args()


def read_rows(file):
    """Sentences and labels of a TSV file with a header, without quotes."""
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return [sentence for sentence, _ in rows], [int(label) for _, label in rows]


def distillation_loss(student_logits, teacher_logits, labels):
    soft = F.kl_div(
        F.log_softmax(student_logits / TEMPERATURE, dim=1),
        F.log_softmax(teacher_logits / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - ALPHA) * F.cross_entropy(student_logits, labels) + ALPHA * TEMPERATURE**2 * soft


def report(*, score, seconds, steps):
    """One line of JSON: the dev accuracy, and seconds and number of the training steps."""
    sys.stdout.write(json.dumps({"score": score, "train_seconds": seconds, "num_steps": steps}) + "\n")
