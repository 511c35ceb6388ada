"""The loop: when it evaluates, what it keeps, when it stops."""

import json
import math

import pytest
import torch

from reptile_distil.errors import RunError
from reptile_distil.training import count_steps, train


class FakeBatches:
    """Ten rows in batches of 4, 4 and 2."""

    num_rows, batch_size, num_batches = 10, 4, 3

    def __init__(self):
        self.epochs = []

    def epoch(self, epoch):
        self.epochs.append(epoch)
        for size in (4, 4, 2):
            yield {"labels": torch.zeros(size)}


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


def run(scores, *, num_epochs=None, losses=(), **options):
    """Trains a fake with the given dev score after each epoch; what was kept, logged and returned."""
    remaining, kept, logged = list(scores), [], []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    method, batches = FakeMethod(optimizer, losses), FakeBatches()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 100)

    def evaluate():
        score = remaining.pop(0)
        return {"scores": {"dev": {"accuracy": score}}, "score": score}

    options = {"max_steps": None, "log_every": 2, **options}
    outcome = train(
        method,
        batches,
        num_epochs=len(scores) if num_epochs is None else num_epochs,
        schedules={"lr": schedule},
        evaluate=evaluate,
        keep_best=lambda: kept.append(len(scores) - len(remaining)),
        log=logged.append,
        **options,
    )
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
def test_trap_09_the_best_epoch_starts_from_minus_infinity_and_survives_nan(scores, kept):
    outcome, kept_epochs, *_ = run(scores)
    assert kept_epochs == kept
    assert outcome.best["epoch"] == kept[-1]


def test_every_epoch_steps_over_every_batch_and_counts_its_rows():
    outcome, _, _, method, batches = run([0.1, 0.2])
    assert method.rows == [4, 4, 2, 4, 4, 2]
    assert batches.epochs == [1, 2]
    assert (outcome.num_steps, outcome.num_examples) == (6, 20)


def test_max_steps_ends_in_mid_epoch_after_an_evaluation():
    outcome, kept, _, method, _ = run([0.1, 0.2], num_epochs=5, max_steps=4)
    assert outcome.num_steps == len(method.rows) == 4
    assert kept == [1, 2]
    assert count_steps(FakeBatches(), 5, 4) == 4
    assert count_steps(FakeBatches(), 5, None) == 15


def test_patience_stops_after_that_many_epochs_without_a_better_score():
    outcome, _, logged, *_ = run([0.1, 0.5, 0.4, 0.3, 0.9], patience=2)
    assert outcome.best["epoch"] == 2
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
    with pytest.raises(RunError, match=r"step 2: loss is (nan|inf) \(learning rates: lr 9.90e-01\)"):
        run([0.1], losses=[1.0, loss])


def test_a_loss_that_is_not_finite_between_two_log_lines_is_noticed_by_the_epochs_end():
    with pytest.raises(RunError, match="loss is nan"):
        run([0.1], losses=[math.nan, 1.0, 1.0], log_every=100)


def test_a_run_without_a_batch_is_refused():
    with pytest.raises(RunError, match=r"^the training set has no batch to train on$"):
        run([], num_epochs=0)
