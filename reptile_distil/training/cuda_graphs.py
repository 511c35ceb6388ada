"""Training steps as CUDA graphs: the kernels of a step are recorded once for each shape of batch, and then replayed.

On short rows a step on a GPU takes as long as the CPU takes to launch its thousands of kernels. A graph launches them
all at once. It repeats the same kernels on the same addresses, so everything that changes from step to step (the batch,
the learning rates) is copied to a fixed place before, and its logs are copied from one behind. Dropout draws new masks
all the same: PyTorch moves the position in its stream of random numbers on with every replay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from reptile_distil.data.batches import Batch
from reptile_distil.errors import ConfigError, ReptileDistilError, RunError, first_sentence
from reptile_distil.methods.adamw import Transformers4AdamW
from reptile_distil.methods.step import Logs
from reptile_distil.models.half_precision import mark_changed
from reptile_distil.runtime.compute import without_compiling
from reptile_distil.runtime.measuring import is_out_of_memory
from reptile_distil.training.loop import Method

LENGTH_STEP = 8
"""Batches are padded to a multiple of this many tokens: a graph for each length would be seldom replayed."""

WARM_UP_STEPS = 2
"""Steps on each shape before one is recorded: in them libraries set up, and optimizers make their state."""


MAX_GRAPHS = 64
"""Lengths up to 512 tokens have as many. Each graph keeps some memory of its own, beside what all share."""


class Recorder(Protocol):
    """Records steps as graphs."""

    def run(self, step: Callable[[], Logs]) -> Logs:
        """Takes the step as usual, where it does not disturb a recording."""
        ...

    def record(self, step: Callable[[], Logs]) -> Callable[[], Logs]:
        """Records the step, without taking it; returns a function that replays it.

        The logs that it returns are overwritten by the next replay of any graph.
        """
        ...


class GraphedSteps:
    """A method whose steps are replayed from graphs.

    Args:
        method: takes the steps. Its step never waits for the device, and launches the same kernels for all batches of
            a shape.
        optimizers: all that the method steps; fused ones, which read learning rate and state on the device.
        batch_size: rows of a batch; one with fewer (an epoch's last) is not worth a graph and is taken as usual.
        max_graphs: batches of further shapes are taken as usual.
        new_recorder: makes the recorder; None: a `CudaRecorder`.

    Raises `ValueError` for an optimizer that is not fused.
    """

    def __init__(
        self,
        method: Method,
        optimizers: Sequence[Optimizer],
        *,
        batch_size: int,
        max_graphs: int = MAX_GRAPHS,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        for optimizer in optimizers:
            if not all(group.get("fused") for group in optimizer.param_groups):
                raise ValueError(f"a {type(optimizer).__name__} in a graph must be a fused one: pass fused=True")
            # The state that was loaded lies elsewhere than the state that a graph updates.
            optimizer.register_load_state_dict_post_hook(lambda _: self.forget())
        self.method = method
        self.optimizers = tuple(optimizers)
        self.batch_size = batch_size
        self.max_graphs = max_graphs
        self._new_recorder = new_recorder or CudaRecorder
        # By group, float32 as the fused kernels read it.
        self._rates = [torch.zeros((), device=group["params"][0].device) for group in self._groups()]
        self.forget()

    def forget(self) -> None:
        """Drops all graphs: they are recorded anew."""
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[Sequence[Batch], Callable[[], Logs]]] = {}
        self._recorder = self._new_recorder()

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def step(self, batch: Batch, inner_batches: Sequence[Batch] = ()) -> Logs:
        """Takes one step of the method, with the optimizers' learning rates as they are now; returns copied logs."""
        for rate, group in zip(self._rates, self._groups(), strict=True):
            rate.fill_(group["lr"])
        for optimizer in self.optimizers:
            if isinstance(optimizer, Transformers4AdamW):
                optimizer.count_step()
        batches = (batch, *inner_batches)
        shape = tuple(tuple((name, tensor.shape, tensor.dtype) for name, tensor in b.items()) for b in batches)
        seen = self._seen.get(shape, 0)
        is_full = len(self._graphs) >= self.max_graphs and shape not in self._graphs
        if len(batch["labels"]) != self.batch_size or seen < WARM_UP_STEPS or is_full:
            self._seen[shape] = seen + 1
            logs = self._recorder.run(lambda: self._take(batches))
            self._drop_gradients()
        else:
            if shape not in self._graphs:
                self._graphs[shape] = self._record(batches)
            inputs, replay = self._graphs[shape]
            for static, given in zip(inputs, batches, strict=True):
                for name, tensor in given.items():
                    static[name].copy_(tensor)
            logs = replay()
            self._mark_changed()
        # All graphs share their memory: the next one overwrites these.
        return {name: value.clone() for name, value in logs.items()}

    def _record(self, batches: Sequence[Batch]) -> tuple[Sequence[Batch], Callable[[], Logs]]:
        """A graph of the step, and the batches that it reads: new ones are copied there before a replay."""
        inputs = [{name: tensor.clone() for name, tensor in batch.items()} for batch in batches]
        # Also weights that have not changed since an evaluation: refreshing their copies is part of the graph.
        self._mark_changed()
        try:
            # Compiled models were compiled for this shape in its first steps: a compiler cannot run in a recording.
            with without_compiling():
                replay = self._recorder.record(lambda: self._take(inputs))
        except ReptileDistilError:
            raise
        except RuntimeError as error:
            # PyTorch ends the recording on the way out, which then fails too.
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            for fault in (error, cause):
                if is_out_of_memory(fault):
                    raise fault from None
            raise RunError(
                f"compute.cuda_graphs = true: this model's step cannot be recorded ({first_sentence(cause)}); use false"
            ) from error
        self._drop_gradients()
        return inputs, replay

    def _take(self, batches: Sequence[Batch]) -> Logs:
        batch, *inner_batches = batches
        with self._rates_on_the_device():
            return self.method.step(batch, inner_batches) if inner_batches else self.method.step(batch)

    @contextlib.contextmanager
    def _rates_on_the_device(self) -> Iterator[None]:
        """Optimizers take their learning rates from tensors inside, which a replay can find changed.

        Outside they are numbers: schedules need not know, and neither need checkpoints.
        """
        before = [dict(group) for group in self._groups()]
        for rate, group in zip(self._rates, self._groups(), strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, values in zip(self._groups(), before, strict=True):
                group.update({name: values[name] for name in ("lr", "capturable") if name in values})

    def _mark_changed(self) -> None:
        """Lets half-precision copies of all weights that the method moves be refreshed before they are used."""
        mark_changed(parameter for group in self._groups() for parameter in group["params"])

    def _drop_gradients(self) -> None:
        """Gives back the gradients' memory: each graph has its own, in what all graphs share."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups


class CudaRecorder:
    """Records on a stream of its own, and takes all other steps there too.

    A gradient's place in the backward pass remembers the stream that it was first used on, and cuBLAS has a workspace
    for each stream. Source: PyTorch's notes on CUDA semantics, "whole-network capture".
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[], Logs]) -> Logs:
        """Takes the step on the stream; whatever is launched after it waits for it on the device."""
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            logs = step()
        outside.wait_stream(self._stream)
        return logs

    def record(self, step: Callable[[], Logs]) -> Callable[[], Logs]:
        """A graph of the step, in the memory of all graphs: no two run at once, and nothing outlives a replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logs = step()

        def replay() -> Logs:
            graph.replay()
            return logs

        return replay


def check_graphs(device: str, num_processes: int) -> None:
    """Raises `ConfigError` where steps cannot be replayed from CUDA graphs."""
    if device != "cuda":
        raise ConfigError(f"compute.cuda_graphs = true: device {device} has none; use false")
    if num_processes > 1:
        raise ConfigError(f"compute.cuda_graphs = true takes one process, but {num_processes} were started; use false")
