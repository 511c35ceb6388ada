"""What is computed once and kept beside the tokenised data: the logits of a teacher as it is now, and latencies.

Logits are computed in the order of the rows' lengths, so that they depend neither on a run's seed nor on what is in the
cache: a run that finds them computes the same bits as one that makes them, and as one that cannot keep them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role
from reptile_distil.data.batches import Batches
from reptile_distil.data.cache import keep_arrays, read_arrays
from reptile_distil.experiments.setup import Setup, cache_folder
from reptile_distil.models.classifier import Classifier, Teacher
from reptile_distil.models.cost import compare_latency
from reptile_distil.runtime.measuring import explain_out_of_memory
from reptile_distil.training.evaluation import predict_logits

logger = logging.getLogger(__name__)

FORMAT = 1
"""Goes up whenever the same key would stand for other numbers."""

Logits = NDArray[np.float32]

_WITHOUT_EFFECT = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")


def keeps_training_logits(config: Config, role: Role, train: Batches) -> bool:
    """Whether a run of this role steps on kept logits: of a teacher that stays, where the loss needs nothing else.

    Unless `kd.keep_logits` says so, training must go over all rows once at least: keeping them then costs nothing.
    """
    if role != "kd" or config.loss.patient or config.loss.hidden or config.kd.keep_logits is False:
        return False
    steps = config.train.max_steps
    return config.kd.keep_logits is True or steps is None or steps >= train.num_batches


@dataclass
class TeacherLogits:
    """The logits of a teacher as it is now, from the cache where they are in it, which gets those that are not.

    Args:
        setup: what the run is computed with.
        teacher: on its device.
        fingerprint: of its weights.
    """

    setup: Setup
    teacher: Teacher
    fingerprint: Mapping[str, Any]

    def is_kept(self, batches: Batches, rows: Mapping[str, Any]) -> bool:
        """Whether the logits of these rows are in the cache."""
        return self._read(self._key(batches, rows), batches) is not None

    def of(self, batches: Batches, rows: Mapping[str, Any], *, title: str | None = None) -> tuple[Logits, float]:
        """Logits (N, C) of the rows, by their fingerprint, and the seconds that computing them took.

        They are computed in passes of the batches' size. With a `title`, a bar shows how far that is. Every process of
        the run must ask, and each gets all of them.
        """
        processes = self.setup.processes
        key = self._key(batches, rows)
        kept = processes.on_main(lambda: self._read(key, batches))
        if kept is not None:
            return kept, 0.0
        started = time.perf_counter()
        logits = predict_logits(self.teacher, batches, processes, title=title)
        seconds = time.perf_counter() - started
        processes.on_main(lambda: self._keep(key, logits))
        return logits, seconds

    def for_training(self, train: Batches, rows: Mapping[str, Any]) -> float:
        """Gives the training batches their logits; returns the seconds that computing them took."""
        batches = self.passes_over(train)
        if not self.setup.processes.on_main(lambda: self.is_kept(batches, rows)):
            logger.info("the teacher's logits of %d training rows, computed once", train.num_rows)
        with explain_out_of_memory("train.eval_batch_size"):
            train.teacher_logits, seconds = self.of(batches, rows, title="teacher's logits")
        return seconds

    def pretend_for_training(self, train: Batches, rows: Mapping[str, Any]) -> Batches | None:
        """Gives the training batches zeros for logits; returns those that a run would still compute them in, if any."""
        model: Any = self.teacher.model
        train.teacher_logits = np.zeros((train.num_rows, model.config.num_labels), np.float32)
        batches = self.passes_over(train)
        return None if self.is_kept(batches, rows) else batches

    def passes_over(self, train: Batches) -> Batches:
        """The training rows in the batches in which their logits are computed."""
        return train.in_batches_of(self.setup.config.train.eval_batch_size)

    def _read(self, key: str, batches: Batches) -> Logits | None:
        cache = cache_folder(self.setup.config)
        logits = None if cache is None else (read_arrays(cache, key) or {}).get("logits")
        return None if logits is None or logits.ndim != 2 or len(logits) != batches.num_rows else logits

    def _keep(self, key: str, logits: Logits) -> None:
        cache = cache_folder(self.setup.config)
        if cache is not None:
            keep_arrays(cache, key, {"logits": logits}, "a teacher's logits")

    def _key(self, batches: Batches, rows: Mapping[str, Any]) -> str:
        """Everything that the logits depend on, to the last bit, but for the machine."""
        parts = {
            "teacher": [dict(self.fingerprint), _architecture(self.teacher)],
            "rows": dict(rows),
            "padding": [
                padding and dataclasses.asdict(padding) for padding in (batches.padding, batches.teacher_padding)
            ],
            "rows_at_once": batches.batch_size,
        }
        return _as_key("logits", parts, self.setup)


def measure_latency(setup: Setup, teacher: Classifier, student: Classifier) -> dict[str, Any] | None:
    """`compare_latency` of both models, measured once on a machine for each pair of shapes and way to compute."""
    length, cache = setup.config.data.max_length, cache_folder(setup.config)
    parts = {
        "models": [_architecture(teacher), _architecture(student)],
        "length": length,
        "num_threads": torch.get_num_threads(),
        "machine": [platform.node(), platform.machine(), platform.processor()],
        "gpu": torch.cuda.get_device_name() if setup.device == "cuda" else None,
    }
    key = _as_key("latency", parts, setup)
    kept = None if cache is None else read_arrays(cache, key)
    if kept is not None:
        batches = {
            size: {"teacher_ms": float(teacher_ms), "student_ms": float(student_ms), "rounds": int(rounds)}
            for size, (teacher_ms, student_ms, rounds) in kept.items()
        }
        return {"length": length, "device": setup.device, "num_threads": torch.get_num_threads(), "batches": batches}
    measured = compare_latency(teacher, student, length=length, device=setup.device)
    if measured is not None and cache is not None:
        names = ("teacher_ms", "student_ms", "rounds")
        arrays = {size: np.array([of_size[name] for name in names]) for size, of_size in measured["batches"].items()}
        keep_arrays(cache, key, arrays, "measured latencies")
    return measured


def _as_key(what: str, parts: Mapping[str, Any], setup: Setup) -> str:
    config = setup.config
    computed = {
        "device": setup.device,
        "precision": config.precision,
        "packing": config.data.packing,
        "attention": config.compute.attention,
        "compile": config.compute.compile,
        "shard": config.distributed.shard,
        "versions": [torch.__version__, transformers.__version__],
    }
    return json.dumps({"format": FORMAT, "what": what, **parts, "computed": computed}, sort_keys=True, default=str)


def _architecture(classifier: Classifier) -> list[Any]:
    """What a model computes, its weights apart."""
    model: Any = classifier.model
    config = model.config.to_dict()
    return [type(model).__name__, {key: config[key] for key in config if key not in _WITHOUT_EFFECT}]
