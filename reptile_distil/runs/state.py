"""What a training run holds in memory, as named tensors and plain values, and back again.

Nothing is taken over that does not fit: names, shapes and dtypes must be those of the live objects. `RunError` says
what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reptile_distil.errors import RunError
from reptile_distil.runtime.processes import cut_like, whole

Tensors = dict[str, Tensor]


class StateOf(nn.Module):
    """The state of an object that need not be a module, as checkpoints read and write that of a module.

    Args:
        holder: has `state_dict()`, tensors by name, and `load_state_dict(tensors)`.
        name: names it in messages.
    """

    holder: Any

    def __init__(self, holder: Any, name: str) -> None:
        super().__init__()
        object.__setattr__(self, "holder", holder)  # not a submodule, should it be a module
        self.name = name

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Copies of the holder's tensors by name. Raises `RunError` for what is none."""
        tensors = self.holder.state_dict()
        for name, value in tensors.items() if isinstance(tensors, Mapping) else [("", tensors)]:
            if not isinstance(value, Tensor):
                raise RunError(f"{self.name}: state_dict() must hold tensors by name, but {name!r} is {value!r}")
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def module_tensors(module: nn.Module) -> Tensors:
    """Weights and buffers by name, each once: of names that share one tensor, the first."""
    tensors: Tensors = {}
    seen = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


@torch.no_grad()
def load_module(module: nn.Module, saved: Mapping[str, Tensor], owner: str) -> None:
    """Sets the weights and buffers of `module`; `owner` is what a message calls it."""
    live = module_tensors(module)
    check_alike(saved, live, owner)
    if isinstance(module, StateOf):
        module.holder.load_state_dict({name: saved[name].to(live[name].device) for name in live})
        return
    for name, tensor in live.items():
        tensor.copy_(cut_like(tensor, saved[name]))


def optimizer_tensors(optimizer: Optimizer) -> Tensors:
    """The state of each parameter as `<its number>.<name of the state>`; empty before the first step."""
    return {
        f"{number}.{name}": tensor
        for number, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def optimizer_values(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Learning rate and other settings of each parameter group."""
    return [_without_parameters(group) for group in optimizer.state_dict()["param_groups"]]


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Tensor], groups: Sequence[Any], owner: str) -> None:
    """Sets the state of each parameter and the settings of each group."""
    live = optimizer.state_dict()
    check_same_kind(groups, [_without_parameters(group) for group in live["param_groups"]], owner)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise RunError(f"{owner} in the checkpoint: no parameter is called {number!r}")
        # A state belongs to each weight of its parameter, or to the parameter as a whole, as AdamW's step does.
        if tensor.shape not in (parameters[int(number)].shape, ()) or not tensor.is_floating_point():
            raise RunError(f"{owner} in the checkpoint: {key} is {_describe(tensor)}, which fits no parameter")
        state.setdefault(int(number), {})[name] = cut_like(parameters[int(number)], tensor) if tensor.ndim else tensor
    if len({frozenset(names) for names in state.values()}) > 1:
        raise RunError(f"{owner} in the checkpoint: some parameters lack a part of their state")
    settings = [
        {**group, **_like(saved_group, group)} for group, saved_group in zip(live["param_groups"], groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": settings})


def random_tensors(device: str) -> Tensors:
    """The state of PyTorch's random numbers on the CPU and on the device; training draws from no others."""
    tensors = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state()
    elif device == "mps":
        tensors["mps"] = torch.mps.get_rng_state()
    return tensors


def load_random(saved: Mapping[str, Tensor], device: str) -> None:
    """Sets the state of PyTorch's random numbers."""
    check_alike(saved, random_tensors(device), "random state")
    torch.set_rng_state(saved["cpu"])
    if device == "cuda":
        torch.cuda.set_rng_state(saved["cuda"])
    elif device == "mps":
        torch.mps.set_rng_state(saved["mps"])


def check_alike(saved: Mapping[str, Tensor], live: Mapping[str, Tensor], owner: str) -> None:
    """Raises `RunError` unless names, shapes and dtypes are the same."""
    for name in sorted(saved.keys() | live.keys()):
        was, now = (_describe(tensors[name]) if name in tensors else "not there" for tensors in (saved, live))
        if was != now:
            raise RunError(
                f"{owner}: {name} is {was} in the checkpoint, but {now} in this run; was the model changed in between?"
            )


def check_same_kind(saved: Any, live: Any, owner: str) -> None:
    """Raises `RunError` unless plain values have the keys, lengths and types of the live ones."""
    if isinstance(live, Mapping):
        same = isinstance(saved, Mapping) and saved.keys() == live.keys()
        pairs = [(saved[key], live[key]) for key in live] if same else []
    elif isinstance(live, list | tuple):
        same = isinstance(saved, list | tuple) and len(saved) == len(live)
        pairs = list(zip(saved, live, strict=True)) if same else []
    else:
        same, pairs = type(saved) is type(live), []
    if not same:
        raise RunError(f"{owner} in the checkpoint: {saved!r} is not of the kind of {live!r}")
    for part, live_part in pairs:
        check_same_kind(part, live_part, owner)


def weights_fingerprint(module: nn.Module) -> dict[str, Any]:
    """A SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in module_tensors(module).items():
        digest.update(name.encode())
        digest.update(whole(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"sha256": digest.hexdigest()}


class TensorGroups:
    """Tensors named `<group>/<name>`, taken out group by group."""

    def __init__(self, tensors: Tensors) -> None:
        self._left = tensors

    def take(self, group: str) -> Tensors:
        """The tensors of a group, by name."""
        prefix = f"{group}/"
        names = [name for name in self._left if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._left.pop(name) for name in names}

    def check_empty(self, owner: str) -> None:
        """Raises `RunError` where there are tensors that nobody took."""
        if self._left:
            raise RunError(f"{owner}: holds {next(iter(self._left))!r}, which this run does not have")


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _like(saved: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples: a list is a tuple again where the live value is one."""
    return {name: tuple(value) if isinstance(live[name], tuple) else value for name, value in saved.items()}


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
