"""What test_processes.py runs in each of two processes, with a launcher's variables in the environment.

python -m tests.helpers.two_processes FOLDER quick|slow: each process leaves what it computed in FOLDER/<rank>.pt, and
together they leave the runs of `interrupted`.
"""

import os
import signal
import sys
from pathlib import Path

import datasets
import torch
import transformers

from reptile_distil.config.config import load_config
from reptile_distil.data.batches import Batches
from reptile_distil.errors import CallbackError, RunError
from reptile_distil.experiments import build_method
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.losses.attention_maps import AttentionLoss
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss, PatientLoss, ProjectedHiddenLoss
from reptile_distil.losses.relations import RelationLoss
from reptile_distil.methods import reptile
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation
from reptile_distil.models.classifier import Classifier
from reptile_distil.models.toy import toy_config, toy_tokenizer
from reptile_distil.runtime.interrupts import Interrupted
from reptile_distil.runtime.processes import ALONE, shard_model, start_processes, stop_processes, whole, whole_copy
from reptile_distil.training.callbacks import RunCallbacks, RunInfo, StopTraining
from reptile_distil.training.evaluation import Evaluator, predict_logits
from tests.helpers.models import batch, bert, mixed, with_rows
from tests.helpers.paths import TINY

METHODS = (
    "finetune",
    "kd",
    "reptile-adamw",
    "reptile-interpolate",
    "reptile-inner",
    "reptile-student-first",
    "kd-hidden",
    "kd-projected",
    "reptile-padded",
    "prokt",
    "kd-mixed",
    "reptile-mixed",
)
STUDENT_FIRST = "reptile-student-first"
INNER = "reptile-inner"
"""Two inner steps of an AdamW that remembers, in every second step, with terms on hidden states."""

# Rows of each step's batch, and rows of a micro-batch. One row among two processes leaves one without any.
PLANS = {"even": ([32] * 20, None), "uneven": ([32, 7, 1, 2, 5] * 2, 3)}
ONE_PLAN_WILL_DO = ("kd-projected", "reptile-padded", "prokt", "kd-mixed", "reptile-mixed")
WHOLE = [(name, plan) for name in METHODS for plan in PLANS if plan == "uneven" or name not in ONE_PLAN_WILL_DO]
SHARDED = {
    "quick": [("reptile-adamw", "even"), ("reptile-interpolate", "uneven"), ("reptile-padded", "even")],
    "slow": [
        *WHOLE[:4],
        ("reptile-adamw", "uneven"),
        ("reptile-interpolate", "even"),
        ("reptile-student-first", "even"),
        ("reptile-student-first", "uneven"),
        ("prokt", "uneven"),
        ("kd-hidden", "uneven"),
    ],
}


def hidden_terms(name):
    """Of every kind."""
    layer_map = ((1,), (3,))
    if name == "kd-projected":
        torch.manual_seed(3)
        return [ProjectedHiddenLoss(5.0, layer_map, student_width=16, teacher_width=16, embeddings=True)]
    if name not in ("kd-hidden", INNER):
        return []
    relations, attention = RelationLoss(0.5, 4, 3, 1), AttentionLoss(0.1, layer_map, "scores", 2, 2)
    return [PatientLoss(0.5, layer_map), HiddenLoss(0.1, layer_map), relations, attention]


def build(name, *, processes=ALONE, shard=False, dropout=0.0, micro_batch_size=None):
    """A method around a teacher of 4 layers and a student of 2, in float64."""
    teacher = bert(4, seed=1, dropout=dropout, dtype=torch.float64)
    student = bert(2, seed=2, dropout=dropout, dtype=torch.float64)
    if name == "reptile-padded":  # which processes cut elsewhere
        with_rows(teacher, 37)
    for model in (teacher, student) if shard else ():
        shard_model(model, "cpu")
    loss = DistillationLoss(alpha=0.5, temperature=4.0, hidden_terms=hidden_terms(name)).double()
    options = {
        # eps: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
        "student_optimizer": torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-3, eps=1e-4),
        # Clipped gradients hide their size, unclipped ones the norm.
        "max_grad_norm": 0.1 if name in ("kd", "kd-projected", "reptile-adamw") else 100.0,
        "micro_batch_size": micro_batch_size,
        "processes": processes,
    }
    if name == "finetune":
        return FineTuner(student, **options), teacher, student
    options["loss"] = loss
    if name.startswith("kd"):
        return KnowledgeDistiller(teacher, student, **options), teacher, student
    if name == "prokt":
        options["teacher_optimizer"] = torch.optim.AdamW(teacher.parameters(), lr=1e-3, eps=1e-4, weight_decay=0.0)
        return ProKTDistiller(teacher, student, **options), teacher, student
    options["update"] = "interpolate" if name == "reptile-interpolate" else "adamw"
    if name == INNER:
        options |= {"ablation": Ablation(inner_steps=2, every=2), "share_forward": False}
        options["inner_optimizer"] = "persistent_adamw"
    if name == STUDENT_FIRST:
        options["order"] = "student_first"
    elif options["update"] == "adamw":
        options |= {"inner_lr": 1e-2, "inner_eps": 1e-4}
    else:
        options |= {"inner_lr": 0.5, "inner_optimizer": "sgd"}
    if options["update"] == "adamw":
        options["teacher_optimizer"] = torch.optim.AdamW(teacher.parameters(), lr=1e-3, eps=1e-4, weight_decay=0.0)
    else:
        options["teacher_optimizer"] = torch.optim.SGD(teacher.parameters(), lr=0.05)
    return ReptileDistiller(teacher, student, **options), teacher, student


def train(name, plan, **options):
    """The last step's logs and both models' weights after the plan's steps."""
    sizes, micro_batch_size = PLANS[plan]
    method, teacher, student = build(name, micro_batch_size=micro_batch_size, **options)
    for step, size in enumerate(sizes):
        inner = [batch(size, seed=100 + step), batch(9, seed=200 + step)] if name == INNER else []
        lesson = mixed(batch(size, seed=step)) if name.endswith("-mixed") else batch(size, seed=step)
        logs = method.step(lesson, *([inner] if inner else []))
    return {
        "logs": logs,
        "teacher": {key: whole(weight.detach()) for key, weight in teacher.named_parameters()},
        "student": {key: whole(weight.detach()) for key, weight in student.named_parameters()},
    }


def dev_set(num_rows):
    """Rows of lengths 3 to 9, two in a batch."""
    lengths = [3 + row % 7 for row in range(num_rows)]
    columns = {
        "input_ids": [[2, *[5 + row % 8] * (length - 2), 3] for row, length in enumerate(lengths)],
        "attention_mask": [[1] * length for length in lengths],
        "label": [row % 3 for row in range(num_rows)],
    }
    vocabulary = {word: index for index, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h".split())}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    return Batches(datasets.Dataset.from_dict(columns), tokenizer, batch_size=2)


def refuse():
    raise RunError("no room")


def fault_of(call):
    try:
        call()
    except RunError as error:
        return str(error)
    return None


def exchange(processes):
    tensors = [torch.tensor([1.0, 2.0]) * (processes.rank + 1), torch.tensor(3, dtype=torch.int64) + processes.rank]
    processes.sum_(tensors)
    model = bert(1, seed=processes.rank)
    processes.share_weights(model, "cpu")
    processes.seed_dropout(7)
    return {
        "rank and count": (processes.rank, processes.count),
        "sums": tensors,
        "decided": processes.on_main(lambda: f"by {processes.rank}"),
        "fault": fault_of(lambda: processes.on_main(refuse)),
        "shared weights": model.state_dict(),
        "random numbers": torch.rand(4),
    }


def evaluate(processes, *, shard=False):
    model = bert(2)
    if shard:
        shard_model(model, "cpu")
    return {
        rows: torch.from_numpy(predict_logits(Classifier(model), dev_set(rows), processes)) for rows in (1, 5, 7, 8)
    }


def drift(processes, *, shard):
    """How far an evaluator says that a teacher has moved whose every weight has moved by 1."""
    teacher = bert(2)
    if shard:
        shard_model(teacher, "cpu")
    evaluator = Evaluator(
        Classifier(bert(1)),
        {"dev": dev_set(5)},
        ["accuracy"],
        teacher=Classifier(teacher),
        teacher_moves=True,
        processes=processes,
    )
    evaluator.score_teacher_at_start()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight += 1
    return evaluator.evaluate().teacher_drift


def part_and_whole():
    model = bert(4, seed=1)
    shard_model(model, "cpu")
    part = sum(weight.to_local().numel() for weight in model.parameters())
    again = whole_copy(model)
    return part, None if again is None else (type(again).__name__, again.config.to_dict(), again.state_dict())


class SignalInStep(ReptileDistiller):
    """Gets a SIGTERM in its 7th step."""

    num_steps = 0

    def step(self, batch, inner_batches=None):
        self.num_steps += 1
        if self.num_steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(batch, inner_batches)


class FailsInStep:
    """Called by the main process alone; fails in its 7th step."""

    num_calls = 0

    def on_step_end(self, run, step, logs, rates):
        self.num_calls += 1
        if run.method == "reptile" and step == 7:
            raise ValueError("in the main process")

    def on_epoch_end(self, run, record):
        if run.method == "reptile" and record["epoch"] == 1:
            raise ValueError("after an epoch")


def failing_callback(folder, teacher):
    """What both processes see of a callback's faults in the run `faulty`, which is then gone on with; and its calls."""
    callback, faults = FailsInStep(), []
    for _ in range(3):
        try:
            experiment(folder / "faulty", teacher, callbacks=[callback]).fit()
        except CallbackError as error:
            faults.append((str(error), sorted(path.name for path in (folder / "faulty").glob("*/*/checkpoints/*"))[-1]))
    return faults, callback.num_calls


def told(processes):
    """What asks for the end of training, by step, where the main process's callback asks at step 3."""

    class Stops:
        def on_step_end(self, run, step, logs, rates):
            if step == 3:
                raise StopTraining

    run = RunInfo("toy", "kd", 0, Path(), 25, {})
    # The main process's callbacks are asked, whatever the others have.
    callbacks = RunCallbacks([Stops()] if processes.is_main else [], run, processes=processes)
    return [callbacks.on_step_end(step, {"loss": torch.ones(())}, {"lr": 0.1}) for step in range(1, 12)]


def experiment(runs, teacher, *, shard=False, callbacks=()):
    """Three epochs of five steps with dropout, of two processes or one."""
    overrides = [f"teacher.pretrained={teacher}", f"runs_dir={runs}", f"distributed.shard={str(shard).lower()}"]
    overrides += ["device=cpu", "train.epochs=3", "train.micro_batch_size=5"]
    overrides += ["checkpoint.every_steps=2", "checkpoint.keep_when_finished=true"]
    return Experiment(load_config(TINY, overrides), callbacks=callbacks)


def interrupted(processes, folder, *, shard=False):
    """The run `whole`; `stopped`, in which the second process alone gets a signal, and gone on with; and `left`."""
    teacher = folder / "teacher"
    if processes.is_main:
        config = toy_config("toy-bert-2L-16H")
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
        transformers.BertForSequenceClassification(config).save_pretrained(teacher)
        toy_tokenizer().save_pretrained(teacher)
    processes.on_main(lambda: None)
    experiment(folder / "whole", teacher, shard=shard).fit()
    for name in ("stopped", "left"):
        if processes.rank == 1:
            build_method.ReptileDistiller = SignalInStep
        try:
            experiment(folder / name, teacher, shard=shard).fit()
            stop = None
        except Interrupted as error:
            stop = error.exit_code, error.saved_step
        finally:
            build_method.ReptileDistiller = ReptileDistiller
    experiment(folder / "stopped", teacher, shard=shard).fit()
    return stop


def quick(processes, folder):
    return {
        "stop": interrupted(processes, folder),
        "callback": failing_callback(folder, folder / "teacher"),
        "told": told(processes),
        "exchange": exchange(processes),
        "logits": evaluate(processes),
        "sharded logits": evaluate(processes, shard=True),
        "drift": [drift(processes, shard=shard) for shard in (False, True)],
        "dropout": train("reptile-adamw", "uneven", processes=processes, dropout=0.1),
        "part and whole": part_and_whole(),
        **{("whole", *job): train(*job, processes=processes) for job in WHOLE},
    }


def main(folder, tier):
    processes = start_processes("cpu")
    reptile.MAX_SCRATCH_ELEMENTS = 100  # fewer than most of these tiny weights have
    folder = Path(folder)
    results = quick(processes, folder) if tier == "quick" else {"stop": interrupted(processes, folder, shard=True)}
    results |= {("sharded", *job): train(*job, processes=processes, shard=True) for job in SHARDED[tier]}
    torch.save(results, folder / f"{processes.rank}.pt")
    stop_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
