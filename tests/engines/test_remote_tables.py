"""Tables by Ray and by submitit's own local cluster: the same bits as one worker's, whatever dies on the way."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, TINY_TABLE

pytestmark = pytest.mark.engine

ENGINES = {
    "ray": ("--engine", "ray"),
    "slurm": ("--engine", "slurm", "engine.slurm.cluster=local"),
}
PACKAGES = {"ray": "ray", "slurm": "submitit"}
SLOW_CELLS = ("tasks=[toy-sentence]", "methods=[kd, deep]", "teacher.train.epochs=40", "checkpoint.every_steps=20")
# The teacher has 2 layers: this row fails, and must not stop the other.
FAILING_ROW = "variants.deep={method: kd, student: {num_layers: 5}}"


@pytest.fixture(params=ENGINES)
def engine(request):
    pytest.importorskip(PACKAGES[request.param])
    if request.param == "ray" and (why := why_ray_cannot_start()):
        pytest.skip(f"Ray cannot start here: {why}")
    return request.param


@functools.cache
def why_ray_cannot_start():
    """The last words of a bare Ray that does nothing but start; empty where it starts."""
    code = "import ray; ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "it has not started after two minutes"
    return done.stderr.strip()[-300:] or "no reason given" if done.returncode else ""


def environment():
    """Of a started process; without the guard, which the address of a Ray node, this machine's own, is no name to."""
    kept = {name: value for name, value in os.environ.items() if name != "NETWORK_ATTEMPTS"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def start():
    """Starts a table in a process group of its own, and ends what a failed test has left of it."""
    started = []

    def start(runs, *arguments):
        command = [sys.executable, "scripts/table.py", "--config", str(TINY_TABLE), f"runs_dir={runs}", *arguments]
        pipe = subprocess.PIPE
        options = {"cwd": ROOT, "env": environment(), "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def by_one_worker(tmp_path_factory):
    """The run folders of the slow cells as one process makes them."""
    runs = tmp_path_factory.mktemp("one") / "runs"
    command = [sys.executable, "scripts/table.py", "--config", str(TINY_TABLE), f"runs_dir={runs}", *SLOW_CELLS]
    subprocess.run([*command, FAILING_ROW], cwd=ROOT, env=environment(), capture_output=True, check=False)
    return runs


def wait_until(is_so, process, seconds=90):
    until = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def teacher(runs):
    return runs / "toy-sentence" / "teacher-seed1"


def has_checkpoint(runs):
    """Whether the teacher's run is at work behind its first checkpoint: the second is there, or being written."""
    return len(list(teacher(runs).glob("checkpoints/step*"))) > 1 and not (teacher(runs) / "results.json").exists()


def workers(runs):
    """The processes that have been at the teacher, in order."""
    logs = (runs / name for name in ("ray-logs", "slurm-logs"))
    (log,) = [file for folder in logs for file in folder.glob("toy-sentence-teacher-seed-1.log")]
    return [int(pid) for pid in re.findall(r" process (\d+) on ", log.read_text())]


def outcome(runs):
    """What must be equal to the bit: weights, predictions, histories of loss, and the scores in the table."""
    run_files = [
        file
        for name in ("model/model.safetensors", "predictions_dev.json")
        for file in sorted(runs.glob(f"*/*-seed1/{name}"))
    ]
    scores = [line for line in (runs / "table.csv").read_text().splitlines() if "speedup" not in line]
    losses = [
        re.sub(r'"\w*seconds\w*": [\d.]+', "", file.read_text()) for file in sorted(runs.glob("*/*/metrics.jsonl"))
    ]
    return {str(file.relative_to(runs)): file.read_bytes() for file in run_files}, scores, losses


def times_gone_on(runs):
    return len(json.loads((teacher(runs) / "environment.json").read_text()).get("gone_on", ()))


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_killed_worker_costs_a_restart_and_no_bit(engine, start, by_one_worker, tmp_path):
    runs = tmp_path / "runs"
    table = start(runs, *SLOW_CELLS, FAILING_ROW, *ENGINES[engine])
    wait_until(lambda: has_checkpoint(runs), table)
    (worker,) = workers(runs)
    os.kill(worker, signal.SIGKILL)
    out, err = table.communicate()
    assert table.returncode == 1, err  # the failing row's
    assert outcome(runs) == outcome(by_one_worker)
    assert out == (runs / "table.md").read_text()
    assert len(workers(runs)) == 2
    assert times_gone_on(runs) == 1
    assert err.count("started again (1 of 3)") == 1
    assert "3 cells: 2 run, 0 already finished, 1 failed" in err
    (failed,) = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: toy-sentence deep seed 1: ")


def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(engine, start, by_one_worker, tmp_path):
    runs = tmp_path / "runs"
    table = start(runs, *SLOW_CELLS, FAILING_ROW, *ENGINES[engine])
    wait_until(lambda: has_checkpoint(runs), table)
    (worker,) = workers(runs)
    table.send_signal(signal.SIGINT)
    _, err = table.communicate(timeout=60)
    assert table.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted by SIGINT")
    assert not is_alive(worker)
    again = start(runs, *SLOW_CELLS, FAILING_ROW)  # by one worker: cells are the same for all engines
    _, err = again.communicate()
    assert again.returncode == 1, err
    assert times_gone_on(runs) == 1
    assert outcome(runs) == outcome(by_one_worker)


def test_sigusr1_queues_a_job_again_which_goes_on_from_that_step(start, by_one_worker, tmp_path):
    pytest.importorskip("submitit")
    runs = tmp_path / "runs"
    table = start(runs, *SLOW_CELLS, FAILING_ROW, *ENGINES["slurm"])
    wait_until(lambda: has_checkpoint(runs), table)
    (worker,) = workers(runs)
    os.kill(worker, signal.SIGUSR1)
    _, err = table.communicate()
    assert "3 cells: 2 run, 0 already finished, 1 failed" in err
    assert "started again" not in err  # it was queued again by itself
    assert len(workers(runs)) == 2
    assert times_gone_on(runs) == 1
    assert outcome(runs) == outcome(by_one_worker)
