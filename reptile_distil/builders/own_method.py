"""A method of the user's own among those of the package: what a run asks of it, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reptile_distil.data.batches import Batch
from reptile_distil.errors import RunError
from reptile_distil.methods.step import Logs
from reptile_distil.models.half_precision import mark_changed
from reptile_distil.runs.state import StateOf

TAKEN_NAMES = ("epoch", "step", "event", "lr")
"""Names that the records of a step have for something else."""


class OwnMethod:
    """Takes the steps of a method of the user's own, and checks what each returns.

    Args:
        method: has `step(batch)`, which returns scalars by name, `loss` among them, the same names in every step. It
            may have `optimizers`, by name, beside the student's, whose learning rates are then scheduled and whose
            states are saved; and `state_dict()` and `load_state_dict()`, both, for what else must survive a resume.
        name: names it in messages.
        moves_teacher: whether its teacher changes.
        models: teacher and student. After each step their weights count as changed, however it wrote them: through
            `.data`, say, of which PyTorch takes no notice.
    """

    def __init__(self, method: Any, name: str, *, moves_teacher: bool, models: Sequence[nn.Module]) -> None:
        self.method = method
        self.name = name
        self.moves_teacher = moves_teacher
        self.models = models
        self._names: set[str] | None = None

    def step(self, batch: Batch) -> Logs:
        """Takes a step; returns its scalars as tensors. Raises `RunError` where they are not as they should be."""
        logs = self.method.step(batch)
        mark_changed(parameter for model in self.models for parameter in model.parameters())
        if not isinstance(logs, Mapping) or "loss" not in logs:
            raise RunError(f"method {self.name}: step() must return a dict of scalars, 'loss' among them, not {logs!r}")
        if self._names is None:
            self._check_names(logs)
            self._names = set(logs)
        if set(logs) != self._names:
            other = min(set(logs) ^ self._names)
            raise RunError(f"method {self.name}: step() must return the same names in every step, but {other!r} varies")
        return {name: self._scalar(name, value, batch) for name, value in logs.items()}

    def optimizers(self) -> dict[str, Optimizer]:
        """Those that it steps beside the student's. Raises `RunError` for what is none, or has the student's name."""
        named = getattr(self.method, "optimizers", {})
        for name, optimizer in named.items() if isinstance(named, Mapping) else [("", named)]:
            if not isinstance(name, str) or not name.isidentifier() or name == "lr":
                raise RunError(f"method {self.name}: optimizers must have names for log files, not {name!r}")
            if not isinstance(optimizer, Optimizer):
                raise RunError(f"method {self.name}: optimizers[{name!r}] is no optimizer but {optimizer!r}")
        return dict(named)

    def state(self) -> dict[str, StateOf]:
        """What checkpoints keep of it. Raises `RunError` where it has only one of the two functions."""
        names = ("state_dict", "load_state_dict")
        has = [name for name in names if hasattr(self.method, name)]
        if not has:
            return {}
        if len(has) == 1:
            (lacking,) = set(names) - set(has)
            raise RunError(
                f"method {self.name} has {has[0]}() but no {lacking}(): a resumed run would not go on with its state, "
                "so give both or neither"
            )
        state = StateOf(self.method, f"method {self.name}")
        state.state_dict()  # what cannot be saved is said before the first step
        return {"method": state}

    def _check_names(self, logs: Mapping[str, Any]) -> None:
        for name in logs:
            if not isinstance(name, str) or not name.isidentifier() or name in TAKEN_NAMES:
                raise RunError(f"method {self.name}: step() returns {name!r}, which is no name for a value in the log")
            if name == "gap" and not self.moves_teacher:
                raise RunError(f"method {self.name}: 'gap' is of a teacher that moves: set moves_teacher = True")

    def _scalar(self, name: str, value: Any, batch: Batch) -> Tensor:
        if isinstance(value, int | float | np.number | np.bool_):
            value = torch.tensor(float(value), device=batch["input_ids"].device)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise RunError(f"method {self.name}: step() returns {name} = {value!r}, which is no scalar")
        return value.detach().reshape(())
