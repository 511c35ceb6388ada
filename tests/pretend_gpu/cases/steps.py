"""Each method on tiny models on the pretended GPU, and batches for it."""

import numpy as np
import torch

from reptile_distil.data.batches import Batches, StepBatches
from reptile_distil.data.features import Features
from reptile_distil.data.transfer import hide_labels, join_rows
from reptile_distil.losses.attention_maps import AttentionLoss
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss, PatientLoss
from reptile_distil.losses.relations import RelationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.models import bert

RAGGED, FULL = (7, 3, 9, 1, 9, 2), (5, 5, 5, 5, 5, 5)
METHODS = ("finetune", "kd", "adamw", "interpolate", "student_first adamw", "student_first interpolate", "metadistil")


def build(name, *, packed=False, autocast_dtype=None, dropout=0.1, hidden=False, **options):
    """The method, with its models on the device."""
    how = {"packed": packed, "autocast_dtype": autocast_dtype}
    teacher = Teacher(bert(4, seed=1).to("cuda"), **how)
    student = Student(bert(2, seed=2, dropout=dropout).to("cuda"), **how)
    shared = {"student_optimizer": adamw(student, lr=1e-3), **options}
    if name == "finetune":
        return FineTuner(student, **shared)
    layers = ((0,), (3,))
    maps = AttentionLoss(1.0, layers, "probabilities", 2, 2)
    terms = (HiddenLoss(1.0, layers), PatientLoss(1.0, layers), RelationLoss(1.0, 4, 3, 1), maps) if hidden else ()
    shared["loss"] = DistillationLoss(hidden_terms=terms)
    if name == "kd":
        return KnowledgeDistiller(teacher, student, **shared)
    if name == "metadistil":
        return MetaDistiller(teacher, student, teacher_optimizer=adamw(teacher, lr=1e-3), **shared)
    order, _, update = name.rpartition(" ")
    if update == "adamw":
        teacher_optimizer = adamw(teacher, lr=1e-3)
    else:
        teacher_optimizer = torch.optim.SGD(teacher.parameters(), lr=1e-3, fused=True)
    order = order or "teacher_first"
    return ReptileDistiller(teacher, student, teacher_optimizer=teacher_optimizer, update=update, order=order, **shared)


def rows(lengths, seed=0, *, mixed=False):
    """Rows of these lengths, on the device, as a run makes its batches; of mixed ones half are transfer rows."""
    lengths = np.array(lengths)
    ids = np.random.default_rng(seed).integers(5, 30, lengths.sum())
    features = Features.end_to_end({"input_ids": ids}, lengths, labels=np.arange(len(lengths)) % 3)
    if mixed:
        features = join_rows(hide_labels(features, num_labelled=len(lengths) // 2, seed=seed))
    num_transfer = len(lengths) // 2 if mixed else 0
    return Batches(features, toy_tokenizer(), batch_size=len(lengths), device="cuda", num_transfer=num_transfer)


def given(name, lengths, seed=0, *, mixed=False):
    """What one step of the method takes; a quiz has labelled rows alone."""
    batch = rows(lengths, seed, mixed=mixed).batch(np.arange(len(lengths)))
    return StepBatches(batch, (rows(lengths, seed + 1).batch(np.arange(len(lengths))),) if name == "metadistil" else ())


def take(method, batches):
    return method.step(batches.batch, *batches.extra)
