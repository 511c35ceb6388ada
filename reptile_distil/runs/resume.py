"""Takes an interrupted run up again where its newest valid checkpoint stands, and writes the checkpoints for that."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reptile_distil.errors import CheckpointError, RunError, first_fault
from reptile_distil.runs.checkpoints import Checkpoint, Checkpoints
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import Results
from reptile_distil.runs.state import (
    TensorGroups,
    Tensors,
    check_same_kind,
    load_module,
    load_optimizer,
    load_random,
    module_tensors,
    optimizer_tensors,
    optimizer_values,
    random_tensors,
)
from reptile_distil.runtime.files import read_bytes
from reptile_distil.runtime.interrupts import STEPS_BETWEEN_AGREEMENTS
from reptile_distil.runtime.measuring import peak_memory, reset_peak_memory
from reptile_distil.runtime.processes import ALONE, Processes, is_sharded, whole
from reptile_distil.training.loop import Progress
from reptile_distil.training.records import EpochRecord

logger = logging.getLogger(__name__)

Fingerprints = dict[str, dict[str, Any]]
"""What identifies each input of a run: `num_rows` of a split, and its `sha256`."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Position(_Strict):
    epochs_done: NonNegativeInt
    batches_done: NonNegativeInt
    step: NonNegativeInt
    num_examples: NonNegativeInt
    train_seconds: NonNegativeFloat
    best: EpochRecord | None
    last: EpochRecord | None
    stopped_by: str | None = None


class _State(_Strict):
    """What state.json holds."""

    decisive: dict[str, Any]
    fingerprints: Fingerprints
    position: _Position
    sums: list[str]
    """Names of the sums of the epoch under way, in the order in which they are logged."""
    optimizers: dict[str, list[dict[str, Any]]]
    schedules: dict[str, dict[str, Any]]
    num_processes: PositiveInt
    metrics_size: NonNegativeInt | None = None
    """Bytes of metrics.jsonl, and their SHA-256, in a checkpoint of an earlier version, which holds no copy of it."""
    metrics_sha256: str | None = None
    wall_seconds: NonNegativeFloat
    """Seconds from the run's start, pauses between its parts not counted."""
    peak_memory: NonNegativeInt
    """Bytes."""


class Recovery:
    """One run's checkpoints: what it goes on from, and what it writes.

    Args:
        folder: of the run; claimed by this process.
        decisive: the values that decide the run's result, by dotted key.
        device: where the run computes.
        with_graphs: whether its steps are replayed from CUDA graphs.
        every_steps: steps between two checkpoints; None: only the clock decides.
        every_minutes: minutes between two checkpoints; None: only the steps decide. One is written at each epoch's
            end in any case.
        keep: how many checkpoints to keep.
        keep_when_finished: whether they stay when the run is finished.
        afresh: begin anew, whatever is there.
        processes: those of the run. The main one finds, checks, writes and removes checkpoints, for all of them.

    Raises `RunError` where every checkpoint is damaged, or an unfinished run was made with other decisive values.
    """

    def __init__(
        self,
        folder: RunFolder,
        decisive: Mapping[str, Any],
        *,
        device: str,
        with_graphs: bool = False,
        every_steps: int | None = None,
        every_minutes: float | None = 10.0,
        keep: int = 2,
        keep_when_finished: bool = False,
        afresh: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self.decisive = dict(decisive)
        self._device = device
        self._with_graphs = with_graphs
        self._every_steps = every_steps
        self._every_minutes = every_minutes
        self._keep_when_finished = keep_when_finished
        self._checkpoints = Checkpoints(folder.checkpoints, keep=keep)
        self._started = self._saved_at = time.perf_counter()
        self._saved_name = ""
        self._processes = processes
        self._found = processes.on_main(lambda: self._find(afresh=afresh))

    @property
    def step(self) -> int | None:
        """The step that the run goes on from; None where there is no checkpoint of it."""
        return None if self._found is None else self._found[1].position.step

    def start_clock(self) -> None:
        """Measures the run's seconds and memory from here."""
        self._started = time.perf_counter()
        reset_peak_memory(self._device)

    def start(self, config_yaml: str, fingerprints: Fingerprints) -> None:
        """Prepares the run folder: for a new run, or as it was at the checkpoint.

        Raises `RunError` where an input is not what it was when the checkpoint was written.
        """
        self._fingerprints = fingerprints
        self._processes.on_main(lambda: self._prepare(config_yaml))

    def check_inputs(self, fingerprints: Fingerprints) -> None:
        """Raises `RunError` where an input is not what it was when the checkpoint, if any, was written."""
        before = fingerprints if self._found is None else self._found[1].fingerprints
        for name in sorted(before.keys() | fingerprints.keys()):
            was, now = before.get(name), fingerprints.get(name)
            if was != now:
                sizes = [f"{side['num_rows']} rows" if side and "num_rows" in side else "" for side in (was, now)]
                how = f" ({sizes[0]} then, {sizes[1]} now)" if sizes[0] != sizes[1] and all(sizes) else ""
                raise RunError(
                    f"{self.folder.path}: the {name} has changed since this run began{how}; "
                    "put the old one back, or run again with --overwrite"
                )

    def _prepare(self, config_yaml: str) -> None:
        if self._found is None:
            self._checkpoints.remove_all()
            self.folder.start(config_yaml, self._device)
            return
        checkpoint, state = self._found
        self.check_inputs(self._fingerprints)
        self._checkpoints.forget_after(checkpoint.path.name)
        self.folder.go_on(config_yaml, self._device, metrics=self._metrics_of(checkpoint, state), best=checkpoint.best)
        logger.info("%s: going on from the checkpoint of step %d", self.folder.path, state.position.step)

    def restore(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        schedules: Mapping[str, LRScheduler],
    ) -> Progress:
        """Sets models, optimizers, schedules and random numbers as they were; returns where the run stands.

        These are also what is saved from now on. Raises `RunError` where they are not those of the checkpoint.
        """
        self._modules, self._optimizers, self._schedules = modules, optimizers, schedules
        if self._found is None:
            return Progress()
        checkpoint, state = self._found
        self._started -= state.wall_seconds
        self._saved_name = checkpoint.path.name
        tensors = TensorGroups(checkpoint.read_tensors())
        check_same_kind(state.optimizers, {name: optimizer_values(o) for name, o in optimizers.items()}, "optimizers")
        check_same_kind(state.schedules, {name: s.state_dict() for name, s in schedules.items()}, "schedules")
        for name, module in modules.items():
            load_module(module, tensors.take(name), name)
        for name, optimizer in optimizers.items():
            load_optimizer(optimizer, tensors.take(f"optimizer {name}"), state.optimizers[name], f"optimizer {name}")
        for name, schedule in schedules.items():
            schedule.load_state_dict(state.schedules[name])
        self._restore_random([tensors.take(f"random {rank}") for rank in range(state.num_processes)])
        sums, gap = tensors.take("sums"), tensors.take("last").get("gap")
        if sums.keys() != set(state.sums):
            raise RunError(f"{checkpoint.path}: its sums are not those that it names")
        tensors.check_empty(str(checkpoint.path))
        return Progress(
            **dict(state.position),
            sums={name: sums[name].to(self._device) for name in state.sums},
            last_gap=None if gap is None else gap.to(self._device),
        )

    def is_due(self, progress: Progress) -> bool:
        """Whether so many steps, or minutes, have passed."""
        if self._every_steps is not None and progress.step % self._every_steps == 0:
            return True
        # Several processes go by the main one's clock, and ask for it now and then: they must wait for its answer.
        if self._every_minutes is None or (self._processes.count > 1 and progress.step % STEPS_BETWEEN_AGREEMENTS):
            return False
        return self._processes.on_main(self._is_time)

    def _is_time(self) -> bool:
        return self._every_minutes is not None and time.perf_counter() - self._saved_at >= 60 * self._every_minutes

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint, unless this very state is saved already. Raises `RunError` where it cannot."""
        name = f"step-{progress.step:08d}" + ("" if progress.batches_done else "-evaluated")
        if name == self._saved_name:
            return
        best = None if progress.best is None else self.folder.model
        tensors = self._tensors(progress)
        self._processes.on_main(
            lambda: self._checkpoints.save(name, tensors, self._state(progress), metrics=self.folder.metrics, best=best)
        )
        self._saved_name, self._saved_at = name, time.perf_counter()

    def finish(self, values: Mapping[str, Any]) -> Results:
        """Writes the run's results, `values` and what concerns the run as a whole: from now on it is finished.

        `peak_memory_bytes` comes as that of this part of the run, and becomes that of all parts. Each process gets the
        main one's results.
        """
        return self._processes.on_main(lambda: self._finish(values))

    def _finish(self, values: Mapping[str, Any]) -> Results:
        before = 0 if self._found is None else self._found[1].peak_memory
        of_whole_run = {
            "wall_seconds": time.perf_counter() - self._started,
            "peak_memory_bytes": max(before, values["peak_memory_bytes"]),
            "device": self._device,
            "decisive": self.decisive,
        }
        results = Results.model_validate({**values, **of_whole_run})
        self.folder.finish(results)
        self.folder.tidy(keep_checkpoints=self._keep_when_finished)
        return results

    def _find(self, *, afresh: bool) -> tuple[Checkpoint, _State] | None:
        self.folder.check_usable()
        names = [] if afresh else self._checkpoints.names()
        for name in names:
            try:
                checkpoint = self._checkpoints.open(name)
                state = self._read_state(checkpoint)
                self.folder.check_same("an unfinished run", state.decisive, self.decisive)
                return checkpoint, state
            except CheckpointError as error:
                logger.warning("%s; the checkpoint before it is tried", error)
        if names:
            raise RunError(
                f"{self.folder.checkpoints}: none of the {len(names)} checkpoints can be used; "
                "put one back, or run again with --overwrite to start afresh"
            )
        return None

    def _read_state(self, checkpoint: Checkpoint) -> _State:
        try:
            state = _State.model_validate(checkpoint.read_state())
        except ValidationError as error:
            raise CheckpointError(f"{checkpoint.path}: its state is no run's: {first_fault(error)}") from None
        self._metrics_of(checkpoint, state)
        return state

    def _metrics_of(self, checkpoint: Checkpoint, state: _State) -> bytes:
        """metrics.jsonl as it was then. Raises `CheckpointError` where it was not kept, and has changed since."""
        kept = checkpoint.read_metrics()
        if kept is None:
            with contextlib.suppress(OSError):
                kept = read_bytes(self.folder.metrics)[: state.metrics_size]
            if kept is None or hashlib.sha256(kept).hexdigest() != state.metrics_sha256:
                raise CheckpointError(f"{checkpoint.path}: metrics.jsonl no longer begins as it was then")
        return kept

    def _tensors(self, progress: Progress) -> Tensors:
        groups: dict[str, Mapping[str, Tensor]] = {
            **{name: module_tensors(module) for name, module in self._modules.items()},
            **{f"optimizer {name}": optimizer_tensors(optimizer) for name, optimizer in self._optimizers.items()},
            **self._random_groups(),
            # Copies, since after the first step of an epoch one tensor may be several of these.
            "sums": {name: tensor.clone() for name, tensor in progress.sums.items()},
            "last": {} if progress.last_gap is None else {"gap": progress.last_gap.clone()},
        }
        named = {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
        # One after the other: a sharded model as a whole may be too large for this process's device.
        return {name: whole(tensor).cpu() if is_sharded(tensor) else tensor for name, tensor in named.items()}

    def _random_groups(self) -> dict[str, Tensors]:
        """The random state of every process."""
        by_name = {
            name: self._processes.gather(state.to(self._device) if self._processes.count > 1 else state)
            for name, state in random_tensors(self._device).items()
        }
        ranks = range(self._processes.count)
        return {f"random {rank}": {name: states[rank].cpu() for name, states in by_name.items()} for rank in ranks}

    def _restore_random(self, states: Sequence[Tensors]) -> None:
        """Sets this process's random numbers as they were, unless the run goes on with another number of processes."""
        if len(states) == self._processes.count:
            load_random(states[self._processes.rank], self._device)
        else:
            logger.warning(
                "the run began as %d processes and goes on as %d: from here on its dropout masks are others",
                len(states),
                self._processes.count,
            )

    def _state(self, progress: Progress) -> dict[str, Any]:
        """What state.json will hold; what a record has not is left out, since null would be an undefined number."""
        values = {field.name: getattr(progress, field.name) for field in fields(progress)}
        state = _State(
            decisive=self.decisive,
            fingerprints=self._fingerprints,
            position=_Position(**{name: values[name] for name in _Position.model_fields}),
            sums=list(progress.sums),
            optimizers={name: optimizer_values(optimizer) for name, optimizer in self._optimizers.items()},
            schedules={name: schedule.state_dict() for name, schedule in self._schedules.items()},
            num_processes=self._processes.count,
            wall_seconds=time.perf_counter() - self._started,
            peak_memory=peak_memory(self._device, with_graphs=self._with_graphs),
        )
        return state.model_dump(exclude_unset=True)
