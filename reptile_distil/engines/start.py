"""From a table's configuration to its engine."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from reptile_distil.config.table_sections import EngineConfig, SlurmConfig
from reptile_distil.engines.engine import Engine, LocalEngine
from reptile_distil.engines.ray_engine import RayEngine
from reptile_distil.engines.slurm_engine import SlurmEngine
from reptile_distil.errors import ConfigError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def make_engine(config: EngineConfig, runs_dir: Path, name: str, *, use_gpus: bool) -> Engine:
    """The engine that is asked for; the logs of its jobs go into a folder of its own in `runs_dir`.

    Raises `MissingExtraError` where its package is not installed, and `ConfigError` where it cannot be used.
    """
    if config.name == "ray":
        ray = config.ray
        return RayEngine(
            runs_dir / "ray-logs",
            address=ray.address,
            gpus_per_job=ray.gpus_per_cell,
            cpus_per_job=ray.cpus_per_cell,
            use_gpus=use_gpus,
            retries=ray.retries,
        )
    if config.name == "slurm":
        slurm = config.slurm
        is_slurm = slurm.cluster == "slurm"
        return SlurmEngine(
            runs_dir / "slurm-logs",
            cluster=slurm.cluster,
            parameters=sbatch_parameters(slurm, name) if is_slurm else process_parameters(slurm, use_gpus=use_gpus),
            retries=slurm.retries,
            max_running=None if is_slurm else _num_at_once(slurm),
            python=None if is_slurm else python_that_sees(slurm.gpus_per_cell),
        )
    return LocalEngine()


def sbatch_parameters(slurm: SlurmConfig, name: str) -> dict[str, Any]:
    """What submitit asks Slurm for, of each job."""
    wanted = {
        "job_name": name,
        "time": slurm.minutes,
        "partition": slurm.partition,
        "gpus_per_node": slurm.gpus_per_cell,
        "cpus_per_task": slurm.cpus_per_cell,
        "mem": None if slurm.memory_gb is None else f"{round(slurm.memory_gb * 1024)}MB",
        "array_parallelism": slurm.parallel,
        "signal_delay_s": slurm.signal_seconds,
        "setup": list(slurm.setup) or None,
        "additional_parameters": dict(slurm.options) or None,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def process_parameters(slurm: SlurmConfig, *, use_gpus: bool) -> dict[str, Any]:
    """The same for processes of this machine, as far as they have it. Raises `ConfigError` for what they cannot have.

    submitit starts the lines of `setup` in a shell, which would hand no signal on to the job.
    """
    if slurm.setup:
        raise ConfigError(
            "engine.slurm.setup: are shell lines for the nodes of Slurm, which engine.slurm.cluster = local does not "
            "run: run them before this command, and give engine.slurm.setup=[]"
        )
    wanted = slurm.gpus_per_cell
    if _num_at_once(slurm) > 1 and (wanted or (wanted is None and use_gpus and _sees_gpus())):
        raise ConfigError(
            f"engine.slurm.gpus_per_cell = {'null' if wanted is None else wanted}: with engine.slurm.cluster = local "
            "all jobs get the same GPUs: give engine.slurm.parallel=1, or 0 GPUs, or --engine ray, which shares them"
        )
    return {"timeout_min": slurm.minutes, "signal_delay_s": slurm.signal_seconds}


def python_that_sees(num_gpus: int | None) -> str:
    """The command that starts Python with the first `num_gpus` of the GPUs that this process sees; None: with all.

    submitit alone would number GPUs from 0 whichever this process was given, and leave out those not asked for. Raises
    `ConfigError` where CUDA_VISIBLE_DEVICES has fewer.
    """
    given = os.environ.get(VISIBLE_GPUS)
    chosen = given
    if num_gpus is not None:
        names = [str(number) for number in range(num_gpus)] if given is None else _names_of_gpus(given)
        if num_gpus > len(names):
            raise ConfigError(
                f"engine.slurm.gpus_per_cell = {num_gpus}: {VISIBLE_GPUS} = {given!r} has {len(names)}: give no more"
            )
        chosen = ",".join(names[:num_gpus])
    return shlex.join(
        ["env", *(["-u", VISIBLE_GPUS] if chosen is None else [f"{VISIBLE_GPUS}={chosen}"]), sys.executable]
    )


def _names_of_gpus(variable: str) -> list[str]:
    """Numbers or UUIDs; -1 hides all that follow it."""
    names = (name.strip() for name in variable.split(","))
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


def _sees_gpus() -> bool:
    import torch  # not needed by the other engines

    return torch.cuda.is_available()


def _num_at_once(slurm: SlurmConfig) -> int:
    """How many processes this machine has cores for."""
    return min(slurm.parallel, max(1, (os.cpu_count() or 1) // (slurm.cpus_per_cell or 1)))
