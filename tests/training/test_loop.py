"""The loop: when it evaluates, what it keeps, when it stops."""

import dataclasses
import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from reptile_distil.data.batches import StepBatches
from reptile_distil.errors import DivergedError, RunError
from reptile_distil.runtime.interrupts import Interrupted, Interrupts
from reptile_distil.training.loop import LoopSettings, Progress, TrainingLoop, count_steps
from reptile_distil.training.records import EpochRecord, Evaluation
from tests.helpers.records import epoch_dict


class FakeBatches:
    """Ten rows in batches of 4, 4 and 2."""

    num_rows, batch_size, num_batches = 10, 4, 3

    def __init__(self):
        self.epochs = []

    def steps(self, epoch, *, skip=0):
        self.epochs.append(epoch)
        for size in (4, 4, 2)[skip:]:
            yield StepBatches({"labels": torch.zeros(size)})

    def name_rows(self, epoch, batch):
        return str(100 * epoch + batch)

    def count_examples(self, num_steps):
        return sum((4, 4, 2)[step % 3] for step in range(num_steps))


class FakeMethod:
    def __init__(self, optimizer, losses=()):
        self.optimizer = optimizer
        self.losses = list(losses)
        self.rows = []

    def step(self, batch):
        self.rows.append(len(batch["labels"]))
        self.optimizer.step()
        loss = self.losses.pop(0) if self.losses else 1.0
        return {"loss": torch.tensor(loss), "grad_norm": torch.tensor(2.0)}


class FakeCheckpoints:
    """Notes what would be saved; due after the steps given."""

    def __init__(self, *due):
        self.due = due
        self.saved = []

    def is_due(self, progress):
        return progress.step in self.due

    def save(self, progress):
        self.saved.append(dataclasses.replace(progress))


def run(scores, *, num_epochs=None, losses=(), log_every=2, evaluate=None, **options):
    """Trains a fake with the given dev score after each epoch; what was kept, logged and returned."""
    remaining, kept, logged = list(scores), [], []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    method, batches = FakeMethod(optimizer, losses), FakeBatches()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 100)

    def next_score():
        score = remaining.pop(0)
        return Evaluation(scores={"dev": {"accuracy": score}}, score=score)

    actions = SimpleNamespace(
        evaluate=evaluate or next_score,
        keep_best=lambda: kept.append(len(scores) - len(remaining)),
        keep_epoch=lambda epoch: None,
        log=lambda record: logged.append(record.to_dict()),
    )
    of_settings = {name: options.pop(name) for name in ("max_steps", "patience", "title") if name in options}
    settings = LoopSettings(
        num_epochs=len(scores) if num_epochs is None else num_epochs, log_every=log_every, **of_settings
    )
    outcome = TrainingLoop(method, batches, {"lr": schedule}, settings, actions, **options).run()
    return outcome, kept, logged, method, batches


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.1, 0.3, 0.2], [1, 2]),
        ([0.3, 0.3], [1]),
        ([-0.2, -0.1], [1, 2]),
        ([0.0, 0.0], [1]),
        ([math.nan, math.nan], [1]),
        ([math.nan, -0.5], [1, 2]),
        ([0.2, math.nan], [1]),
        ([-math.inf, -math.inf], [1]),
    ],
)
def test_the_best_epoch_starts_from_minus_infinity_and_survives_nan(scores, kept):
    outcome, kept_epochs, *_ = run(scores)
    assert kept_epochs == kept
    assert outcome.best.epoch == kept[-1]


def test_every_epoch_steps_over_every_batch_and_counts_its_rows():
    outcome, _, _, method, batches = run([0.1, 0.2])
    assert method.rows == [4, 4, 2, 4, 4, 2]
    assert batches.epochs == [1, 2]
    assert (outcome.num_steps, outcome.num_examples) == (6, 20)


def test_each_step_gets_its_batch_and_its_extra_batches():
    given = []

    class Batches(FakeBatches):
        def steps(self, epoch, *, skip=0):
            for number, (batch, _) in enumerate(super().steps(epoch, skip=skip), start=skip):
                yield StepBatches(batch, (f"quiz {epoch}-{number}",))

    class Method(FakeMethod):
        def step(self, batch, quiz):
            given.append((len(batch["labels"]), quiz))
            return super().step(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "FakeBatches", Batches)
        patch.setitem(globals(), "FakeMethod", Method)
        run([0.1, 0.2], progress=Progress(batches_done=1, step=1, sums={"loss": torch.ones(()), "grad_norm": 0}))
    assert given == [(4, "quiz 1-1"), (2, "quiz 1-2"), (4, "quiz 2-0"), (4, "quiz 2-1"), (2, "quiz 2-2")]


def test_max_steps_ends_in_mid_epoch_after_an_evaluation():
    outcome, kept, _, method, _ = run([0.1, 0.2], num_epochs=5, max_steps=4)
    assert outcome.num_steps == len(method.rows) == 4
    assert kept == [1, 2]
    assert count_steps(FakeBatches(), 5, 4) == 4
    assert count_steps(FakeBatches(), 5, None) == 15


def test_patience_stops_after_that_many_epochs_without_a_better_score():
    outcome, _, logged, *_ = run([0.1, 0.5, 0.4, 0.3, 0.9], patience=2)
    assert outcome.best.epoch == 2
    assert [record["epoch"] for record in logged if record["event"] == "epoch"] == [1, 2, 3, 4]


def test_steps_are_logged_every_so_often_and_at_the_end_with_the_rate_they_used():
    _, _, logged, *_ = run([0.1], log_every=2)
    steps = [record for record in logged if record["event"] == "step"]
    assert [record["step"] for record in steps] == [2, 3]
    assert steps[0]["lr"] == pytest.approx(0.99)  # the second step runs at 1 - 1/100
    json.dumps(logged)


def test_the_epochs_losses_are_means_over_its_steps():
    _, _, logged, *_ = run([0.1], losses=[1.0, 2.0, 6.0])
    (epoch,) = (record for record in logged if record["event"] == "epoch")
    assert epoch["train"]["loss"] == pytest.approx(3.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rate(loss):
    with pytest.raises(RunError, match=r"step 2: loss is (nan|inf) \(learning rates: lr 9.90e-01; .*: 101\)"):
        run([0.1], losses=[1.0, loss])


def test_a_loss_that_is_not_finite_between_two_log_lines_is_noticed_by_the_epochs_end():
    with pytest.raises(RunError, match="loss is nan"):
        run([0.1], losses=[math.nan, 1.0, 1.0], log_every=100)


def test_a_diverged_step_is_named_with_its_own_rate_and_rows_however_late_it_is_noticed():
    with pytest.raises(RunError) as error:
        run([0.1, 0.2], losses=[1.0, 1.0, 1.0, 1.0, math.inf, math.nan], log_every=100, title="kd on rte")
    # the second batch of the second epoch, at rate 1 - 4/100
    assert str(error.value).startswith("kd on rte: step 5: loss is inf (learning rates: lr 9.60e-01; ")
    assert "counted from 0: 201)" in str(error.value)


def test_an_evaluation_that_finds_a_diverged_model_ends_the_run_naming_the_epoch_and_saves_nothing():
    def evaluate():
        raise DivergedError("dev: no finite logits")

    checkpoints = FakeCheckpoints()
    with pytest.raises(DivergedError, match=r"^kd-seed1: after epoch 1, step \d+: dev: no finite logits$"):
        run([], num_epochs=2, evaluate=evaluate, title="kd-seed1", checkpoints=checkpoints)
    assert not checkpoints.saved


def test_a_checkpoint_is_never_written_once_a_step_was_not_finite():
    checkpoints = FakeCheckpoints(1, 3)
    with pytest.raises(RunError, match="step 2: loss is nan"):
        run([0.1, 0.2], losses=[1.0, math.nan, 1.0], log_every=100, checkpoints=checkpoints)
    assert [progress.step for progress in checkpoints.saved] == [1]


def test_checkpoints_are_written_when_due_and_at_the_end_of_each_epoch():
    checkpoints = FakeCheckpoints(2, 4)
    run([0.1, 0.2], checkpoints=checkpoints)
    saved = [(p.epochs_done, p.batches_done, p.step, p.num_examples) for p in checkpoints.saved]
    assert saved == [(0, 2, 2, 8), (1, 0, 3, 10), (1, 1, 4, 14), (2, 0, 6, 20)]
    assert [p.best and p.best.epoch for p in checkpoints.saved] == [None, 1, 1, 2]


@pytest.mark.parametrize("due", [1, 2, 3, 4, 5, 6])
def test_a_run_taken_up_again_logs_and_ends_as_one_that_never_stopped(due):
    checkpoints = FakeCheckpoints(due)
    scores, losses = [0.3, 0.2], [1.0, 2.0, 6.0, 4.0, 8.0, 9.0]
    whole, _, all_logged, *_ = run(scores, losses=losses, checkpoints=checkpoints, num_epochs=2)
    (progress,) = [p for p in checkpoints.saved if p.step == due and p.batches_done]
    seconds = progress.train_seconds
    rest, _, logged, *_ = run(
        scores[progress.epochs_done :], losses=losses[due:], progress=progress, num_epochs=2, log_every=2
    )
    without_rates = [{k: v for k, v in record.items() if k not in ("lr", "train_seconds")} for record in logged]
    expected = [{k: v for k, v in record.items() if k not in ("lr", "train_seconds")} for record in all_logged]
    assert without_rates == expected[len(expected) - len(logged) :]
    assert (rest.best.epoch, rest.num_steps, rest.num_examples) == (1, whole.num_steps, whole.num_examples)
    assert rest.train_seconds > seconds


def test_a_run_stopped_before_an_evaluation_evaluates_first():
    progress = Progress(batches_done=3, step=3, num_examples=10, sums={"loss": torch.tensor(6.0)})
    outcome, kept, logged, method, _ = run([0.4], progress=progress)
    assert method.rows == []
    assert kept == [1]
    assert logged[0]["train"] == {"loss": 2.0}
    assert outcome.num_steps == 3


def test_a_run_stopped_at_max_steps_before_its_evaluation_takes_no_step_more():
    progress = Progress(batches_done=2, step=2, num_examples=8, sums={"loss": torch.tensor(6.0)})
    outcome, _, logged, method, _ = run([0.4], progress=progress, max_steps=2, num_epochs=3)
    assert (method.rows, len(logged), outcome.num_steps) == ([], 1, 2)


RECORD = EpochRecord.model_validate(epoch_dict(1))


@pytest.mark.parametrize(
    ("progress", "options"),
    [
        ({"epochs_done": 2, "step": 6}, {"num_epochs": 2}),
        ({"epochs_done": 1, "step": 2}, {"num_epochs": 2, "max_steps": 2}),
        ({"epochs_done": 3, "step": 9}, {"num_epochs": 9, "patience": 2}),
    ],
)
def test_a_run_that_was_over_takes_no_step_and_gives_the_same_outcome(progress, options):
    last = EpochRecord.model_validate(epoch_dict(progress["epochs_done"]))
    outcome, kept, logged, method, _ = run([], progress=Progress(**progress, best=RECORD, last=last), **options)
    assert (kept, logged, method.rows) == ([], [], [])
    assert (outcome.best, outcome.last, outcome.num_steps) == (RECORD, last, progress["step"])


def interrupting(method_class, step):
    """A method that gets a signal in the middle of its n-th step."""

    class Method(method_class):
        def step(self, batch):
            if len(self.rows) + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(batch)

    return Method


def test_a_signal_finishes_the_step_and_writes_a_checkpoint_of_it(monkeypatch):
    checkpoints = FakeCheckpoints()
    monkeypatch.setitem(globals(), "FakeMethod", interrupting(FakeMethod, 5))
    with pytest.raises(Interrupted, match="a checkpoint of step 5 was written") as stop, Interrupts() as interrupts:
        run([0.1, 0.2], checkpoints=checkpoints, interrupts=interrupts)
    assert stop.value.exit_code == 143
    assert [(p.epochs_done, p.batches_done, p.step) for p in checkpoints.saved] == [(1, 0, 3), (1, 2, 5)]


def test_a_signal_in_an_evaluation_stops_it_and_saves_the_state_before_it():
    checkpoints, evaluated = FakeCheckpoints(), []

    def evaluate():
        os.kill(os.getpid(), signal.SIGUSR1)
        evaluated.append("whole")

    with pytest.raises(Interrupted, match="step 3"), Interrupts() as interrupts:
        run([0.1], checkpoints=checkpoints, interrupts=interrupts, evaluate=evaluate)
    assert evaluated == []
    assert [(p.epochs_done, p.batches_done, p.step) for p in checkpoints.saved] == [(0, 3, 3)]


def test_a_signal_after_a_step_that_was_not_finite_saves_nothing(monkeypatch):
    checkpoints = FakeCheckpoints()
    monkeypatch.setitem(globals(), "FakeMethod", interrupting(FakeMethod, 2))
    with pytest.raises(RunError, match="step 1: loss is nan"), Interrupts() as interrupts:
        run([0.1], losses=[math.nan], checkpoints=checkpoints, interrupts=interrupts, log_every=100)
    assert checkpoints.saved == []


def test_a_run_without_a_batch_is_refused():
    with pytest.raises(RunError, match=r"^the training set has no batch to train on$"):
        run([], num_epochs=0)
