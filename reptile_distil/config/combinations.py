"""What of a configuration cannot be computed together: methods of the user's own, and steps from CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from reptile_distil.config.sections import MethodName
from reptile_distil.plugin_names import folder_name, is_plugin

if TYPE_CHECKING:
    from reptile_distil.config.config import Config


def check_own_methods(config: Config) -> None:
    """Raises `ValueError` for options of two methods of the user's own, and for two runs in one folder."""
    own = [name for name in dict.fromkeys((config.method, *config.compare_with)) if is_plugin(name)]
    if len(own) > 1 and config.method_options:
        raise ValueError(f"method_options are of one method, but {' and '.join(own)} are to be run: start each alone")
    taken = [*get_args(MethodName), "teacher"]
    for name in own:
        folder = folder_name(name)
        if folder in taken or not folder:
            raise ValueError(f"method {name}: its run folder would be another's, {folder!r}: rename the class")
        taken.append(folder)
    for key, is_on in {
        "compute.cuda_graphs": config.compute.cuda_graphs,
        "distributed.shard": config.distributed.shard,
        "data.transfer, rows without labels,": config.data.transfer.is_on,
    }.items():
        if own and is_on:
            raise ValueError(f"{key} cannot be used with a method of one's own, {own[0]}: leave it out")


def check_graphed_steps(config: Config) -> None:
    """Raises `ValueError` for what `compute.cuda_graphs` cannot record."""
    if not config.compute.cuda_graphs:
        return
    methods = (config.method, *config.compare_with)
    for name in ("metadistil", "checkpoints", "lgtm"):
        if name in methods:
            raise ValueError(f"{name} cannot be computed with compute.cuda_graphs: set it to false")
    for name, is_on in {
        "data.packing": config.data.packing,
        "distributed.shard": config.distributed.shard,
        "loss.extra_rows": config.loss.extra_rows > 0,
        "train.micro_batch_size": config.train.micro_batch_size,
        "teacher.train.micro_batch_size": config.teacher.train.micro_batch_size,
    }.items():
        if is_on:
            raise ValueError(f"{name} cannot be used with compute.cuda_graphs: choose one of the two")
    if "reptile" in methods and not (config.reptile.can_share_forward and config.reptile.every == 1):
        raise ValueError(
            "compute.cuda_graphs takes one fresh inner step on the batch of each step: set it to false with "
            "reptile.inner_steps > 1, every > 1, inner_batch: held_out or persistent_adamw"
        )
