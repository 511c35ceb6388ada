"""A model on a split: logits, scores, and how far two models agree."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from reptile_distil.data.batches import Batches
from reptile_distil.errors import DivergedError
from reptile_distil.models.classifier import Classifier
from reptile_distil.runtime.processes import ALONE, Processes, is_sharded, local_part
from reptile_distil.runtime.text_tables import with_sign
from reptile_distil.training.metrics import Scores, compute_scores, predictions_from_logits, selection_score
from reptile_distil.training.records import Evaluation

logger = logging.getLogger(__name__)

WEAK_TEACHER = 0.8
"""A teacher below this fraction of its first dev score is worth a warning."""
_HOW_FAR_TEACHERS_MOVE = {
    "reptile": "reptile.mu (or reptile.update=interpolate)",
    **{name: f"{name}.teacher_lr" for name in ("metadistil", "prokt", "cotrain", "lgtm")},
}
"""By method, the setting whose smaller value lets the teacher move less."""


@torch.no_grad()
def predict_logits(
    model: Classifier, batches: Batches, processes: Processes = ALONE, *, title: str | None = None, split: str = ""
) -> NDArray[np.float32]:
    """Logits (N, C) of every row, in the data set's order, in eval mode; the model's mode is restored.

    Several processes share the batches, each computed once, and each process gets all logits. With a `title`, a
    terminal shows a progress bar. Raises `DivergedError`, which names the `split`, for logits that are not finite: the
    largest of them would be a prediction like any other.
    """
    was_training = model.training
    model.eval()
    order, logits = [], []
    num_batches = -(-batches.num_batches // processes.count)
    hidden = True if title is None or not processes.is_main else None
    shown = tqdm(desc=title, total=num_batches, unit="batch", disable=hidden, dynamic_ncols=True, leave=False)
    try:
        for rows, batch in batches.in_length_order(processes.rank, processes.count):
            shown.update()
            order.append(rows)
            logits.append(model(batch)[: len(rows)].float())
    finally:
        shown.close()
        model.train(was_training)
    in_order = torch.zeros(batches.num_rows, logits[0].shape[1])
    in_order[torch.from_numpy(np.concatenate(order))] = torch.cat(logits).cpu()  # the only wait for the device
    if processes.count > 1:
        # Each row is 0 but on the one process that has computed it.
        shared = in_order.to(batches.device)
        processes.sum_([shared])
        in_order = shared.cpu()
    _check_finite(in_order, batches, split)
    return in_order.numpy()


def _check_finite(logits: torch.Tensor, batches: Batches, split: str) -> None:
    faulty = (~logits.isfinite().all(dim=1)).nonzero()
    if len(faulty):
        raise DivergedError(
            f"{f'{split}: ' if split else ''}{len(faulty)} of {len(logits)} rows have logits that are not finite, the "
            f"first one row {batches.features.row_ids[int(faulty[0])]}, counted from 0: the model's weights have "
            "diverged; train it with a lower learning rate"
        )


def score_logits(logits: NDArray[Any], batches: Batches, metrics: Sequence[str]) -> Scores:
    """The scores of logits (N, C) against the labels of the same rows."""
    return compute_scores(predictions_of(logits, batches), np.asarray(batches.features["label"]), metrics)


def predictions_of(logits: NDArray[Any], batches: Batches) -> NDArray[Any]:
    """What logits (N, C) say of the same labelled rows: as `predictions_from_logits`, for their kind of labels."""
    return predictions_from_logits(logits, multi_label=batches.features.has_label_sets)


def predict_splits(
    model: Classifier, splits: Mapping[str, Batches], processes: Processes = ALONE
) -> dict[str, NDArray[np.float32]]:
    """`predict_logits` of each split."""
    return {split: predict_logits(model, batches, processes, split=split) for split, batches in splits.items()}


def score_splits(
    logits: Mapping[str, NDArray[Any]], splits: Mapping[str, Batches], metrics: Sequence[str]
) -> dict[str, Scores]:
    """`score_logits` of each split."""
    return {split: score_logits(of_split, splits[split], metrics) for split, of_split in logits.items()}


def agreement(student_logits: NDArray[Any], teacher_logits: NDArray[Any], *, multi_label: bool = False) -> float:
    """Fraction of rows on which both choose the same class or labels; for regression, their Pearson correlation."""
    student, teacher = (
        predictions_from_logits(logits, multi_label=multi_label) for logits in (student_logits, teacher_logits)
    )
    if multi_label:
        return float(np.mean((student == teacher).all(axis=1)))
    if student_logits.shape[1] == 1:
        return compute_scores(student, teacher, ["pearson"])["pearson"]
    return float(np.mean(student == teacher))


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; of what lies on a GPU in pinned memory, from which nothing waits for it."""
    return tensor.cpu().pin_memory() if tensor.is_cuda else tensor.cpu().clone()


class Evaluator:
    """Evaluates the student on the dev splits after each epoch, and beside it the teacher.

    Args:
        student: the model whose score chooses the best epoch.
        dev: batches of each split to evaluate them on; the first one's score is the one that chooses.
        metrics: names of the scores.
        teacher: the teacher, or None; `score_teacher_at_start` comes before the first `evaluate`.
        teacher_moves: whether the teacher is evaluated after each epoch; a frozen one is evaluated at its start only.
        method: the method that is run, whose settings are named where its teacher grows weak; empty: those of all.
        processes: those that share the work; each gets the same records.
    """

    def __init__(
        self,
        student: Classifier,
        dev: Mapping[str, Batches],
        metrics: Sequence[str],
        *,
        teacher: Classifier | None = None,
        teacher_moves: bool = False,
        method: str = "",
        processes: Processes = ALONE,
    ) -> None:
        self.student = student
        self.dev = dev
        self.metrics = metrics
        self.teacher = teacher
        self.teacher_moves = teacher_moves
        self.method = method
        self.processes = processes
        self.logits: dict[str, NDArray[np.float32]] = {}
        """By split, the student's logits (N, C) in the latest evaluation."""
        self.teacher_start: dict[str, Scores] = {}
        """The teacher's scores at its start, by split."""
        self.teacher_scores: dict[str, Scores] = {}
        """Those of the latest evaluation."""
        self._teacher_logits: dict[str, NDArray[np.float32]] = {}
        self._weights_at_start: list[torch.Tensor] = []

    def score_teacher_at_start(self, logits: Mapping[str, NDArray[np.float32]] | None = None) -> dict[str, Scores]:
        """Scores the teacher as it is now, before anything moves it; later evaluations compare it with that.

        `logits` are its logits by split, where they are known.
        """
        if self.teacher is not None:
            self._teacher_logits = self._predict(self.teacher) if logits is None else dict(logits)
            if self.teacher_moves:
                weights = self.teacher.parameters()
                self._weights_at_start = [_kept(local_part(weight.detach())) for weight in weights]
        self.teacher_start = self.teacher_scores = self._score(self._teacher_logits)
        return self.teacher_start

    def evaluate(self) -> Evaluation:
        """The student's scores by split and, where there is a teacher, the teacher's and how both compare."""
        self.logits = logits = self._predict(self.student)
        scores = self._score(logits)
        first = next(iter(self.dev))
        score = selection_score(scores[first])
        if self.teacher is None:
            return Evaluation(scores=scores, score=score)
        if self.teacher_moves:
            self._teacher_logits = self._predict(self.teacher)
        self.teacher_scores = self._score(self._teacher_logits)
        teacher_score = selection_score(self.teacher_scores[first])
        self._warn_of_a_weak_teacher(teacher_score, selection_score(self.teacher_start[first]))
        return Evaluation(
            scores=scores,
            score=score,
            teacher_scores=self.teacher_scores,
            teacher_score=teacher_score,
            agreement=agreement(
                logits[first], self._teacher_logits[first], multi_label=self.dev[first].features.has_label_sets
            ),
            teacher_drift=self._teacher_drift(),
        )

    def _predict(self, model: Classifier) -> dict[str, NDArray[np.float32]]:
        return predict_splits(model, self.dev, self.processes)

    def _score(self, logits: Mapping[str, NDArray[Any]]) -> dict[str, Scores]:
        return score_splits(logits, self.dev, self.metrics)

    def _teacher_drift(self) -> float:
        """||theta_t - theta_t(0)|| over all weights; those that Reptile does not match add nothing."""
        if self.teacher is None or not self._weights_at_start:
            return 0.0
        weights = list(self.teacher.parameters())
        # The start comes back to the device, a weight at a time, rather than that the CPU waits for each weight.
        squares = [
            (local_part(weight.detach()) - start.to(weight.device, non_blocking=True)).square().sum()
            for weight, start in zip(weights, self._weights_at_start, strict=True)
        ]
        square = torch.stack(squares).sum()
        if is_sharded(weights[0]):
            self.processes.sum_([square])
        return float(square.sqrt())

    def _warn_of_a_weak_teacher(self, score: float, start: float) -> None:
        first = next(iter(self._teacher_logits))
        said = predictions_of(self._teacher_logits[first], self.dev[first])
        if self.teacher_moves and len(np.unique(said, axis=0)) == 1:
            logger.warning(
                "on %s the teacher now says the same for every row: that a student agrees with it means nothing", first
            )
        if start > 0 and score < WEAK_TEACHER * start:
            mean = f", the mean of {' and '.join(self.metrics)}," if len(self.metrics) > 1 else ""
            logger.warning(
                "the teacher's own score on %s%s has fallen from %s to %s: it no longer knows the task it teaches%s",
                *(first, mean, with_sign(start), with_sign(score), self._how_to_move_less()),
            )

    def _how_to_move_less(self) -> str:
        """The settings that keep the teacher nearer to its start; empty for a method that has none."""
        if not self.method:
            return f"; try a smaller value of its method's setting: {', '.join(_HOW_FAR_TEACHERS_MOVE.values())}"
        setting = _HOW_FAR_TEACHERS_MOVE.get(self.method)
        return "" if setting is None else f"; try a smaller {setting}"
