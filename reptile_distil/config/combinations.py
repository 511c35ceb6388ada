"""What of a configuration does not go together: methods of the user's own, CUDA graphs, options without effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, get_args

from reptile_distil.config.sections import OWN_SECTIONS, MethodName
from reptile_distil.errors import ConfigError
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


def refuse_idle_options(
    configs: Collection[Config], given: Mapping[str, Any], remedy: str = "method={0} or compare_with=[{0}]"
) -> None:
    """Raises `ConfigError` for what the command line gives, by dotted key, and none of the configurations' runs takes.

    A file may hold the options of every method and start, but who gives one on the command line expects it to do
    something. `remedy` says how a method is given, with {0} for its name.
    """
    methods = {method for config in configs for method in (config.method, *config.compare_with)}
    for key, value in given.items():
        if not has_effect(key, methods):
            section = key.partition(".")[0]
            instead = f"leave it out, or give {remedy.format(section)}"
            if section == "method_options":
                first = remedy.partition(" or ")[0].format("package.module:Name")
                instead = f"leave it out, or give a method of your own, {first}"
            if section == "data":
                instead = "which learns from labels alone; leave it out"
            sign = "," if section == "data" else ";"
            raise ConfigError(
                f"command line: {key} has no effect on method {' or '.join(sorted(methods))}{sign} {instead}"
            )
        reasons = [left_aside(key, config) for config in configs]
        if value not in (None, []) and all(reasons):
            why, instead = next(filter(None, reasons))
            raise ConfigError(f"command line: {key} has no effect with {why}; leave it out, or give {instead}")


def has_effect(key: str, methods: Collection[str]) -> bool:
    """Whether one of the methods takes the key."""
    section = key.partition(".")[0]
    if section == "method_options":
        return any(map(is_plugin, methods))
    if key in ("data.transfer.files", "data.transfer.ratio"):
        return set(methods) != {"finetune"}
    return section not in (*OWN_SECTIONS, "kd") or section in methods


def left_aside(key: str, config: Config) -> tuple[str, str] | None:
    """The setting that leaves the start of teacher or student without the key, and the one that needs it, if any."""
    finetuned, start = config.teacher.finetuned, config.student.init
    if key == "student.pretrained" and start != "pretrained":
        return f"student.init = {start}", "student.init=pretrained"
    if key == "teacher.label_names" and finetuned is None and not config.teachers:
        return "a teacher that is fine-tuned here", "teacher.finetuned=..."
    is_of_its_tuning = key.startswith("teacher.train.") or key == "teacher.keep_epochs"
    if finetuned is not None and (is_of_its_tuning or (key == "teacher.pretrained" and start == "pretrained")):
        return f"teacher.finetuned = {finetuned}", "teacher.finetuned=null"
    return None
