"""Jobs that are processes of this machine, when the engine is left: time for a checkpoint, and nothing left running."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from reptile_distil.config.table_sections import SlurmConfig
from reptile_distil.engines import process_trees, slurm_engine
from reptile_distil.engines.slurm_engine import SlurmEngine
from reptile_distil.engines.start import process_parameters
from reptile_distil.runtime.interrupts import Interrupted, Interrupts

# Not imported here: submitit reads its signal when it is imported, and `SlurmEngine` says which before.
needs_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit")


def work(folder, name, seconds_for_checkpoint):
    """Takes a signal as a run does, and is through with its checkpoint after some seconds; None: takes no signal."""
    if seconds_for_checkpoint is None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    with Interrupts():
        Path(folder, f"{name}.started").write_text(f"{os.getpid()} {os.getppid()}")
        try:
            time.sleep(60)
        except Interrupted:
            time.sleep(seconds_for_checkpoint)
            Path(folder, f"{name}.checkpoint").touch()
            raise


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_both(folder):
    """The process ids of both workers and of their parents."""
    until = time.monotonic() + 60
    while len(words := " ".join(file.read_text() for file in folder.glob("*.started")).split()) < 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    return map(int, words)


def test_a_killed_worker_is_waited_for_while_the_system_takes_its_time(monkeypatch):
    """Its parent, the controller, is gone by then, so that nobody else asks for it."""
    start_child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    controller = subprocess.Popen([sys.executable, "-c", start_child])
    while not (children := process_trees._children_of(controller.pid)):
        time.sleep(0.05)
    asked = []

    def is_running(pid):
        asked.append(pid)
        return pid in children and asked.count(pid) < 4

    monkeypatch.setattr(process_trees, "_is_running", is_running)
    process_trees.end_trees([controller.pid], lambda pid: controller.poll() is not None, seconds=0.0)
    assert [asked.count(pid) for pid in children] == [4]


def test_a_process_that_only_its_parent_has_not_asked_for_does_not_run():
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    assert process_trees._is_running(os.getpid())
    while process_trees._is_running(child.pid):
        time.sleep(0.01)
    assert child.returncode is None
    child.communicate()
    assert not process_trees._is_running(child.pid)


@needs_submitit
def test_ctrl_c_gives_jobs_time_for_their_checkpoints_and_leaves_none_behind(tmp_path, monkeypatch, capfd):
    """At a terminal it reaches the table and all that it has started at once."""
    monkeypatch.setattr(slurm_engine, "SECONDS_TO_STOP", 5.0)
    parameters = process_parameters(SlurmConfig(cluster="local"), use_gpus=False)
    processes = []

    def stop_two_jobs():
        with SlurmEngine(tmp_path / "logs", cluster="local", parameters=parameters, retries=0) as engine:
            for name, seconds in (("quick", 1.5), ("deaf", None)):
                engine.submit(work, tmp_path, name, seconds, name=name)
            engine._queued = list(engine._jobs)
            engine._start_what_is_due()
            processes.extend(wait_for_both(tmp_path))
            for pid in (*processes, os.getpid()):
                os.kill(pid, signal.SIGINT)

    with pytest.raises(Interrupted):
        stop_two_jobs()
    assert (tmp_path / "quick.checkpoint").exists()
    assert not [pid for pid in processes if is_alive(pid)]
    assert capfd.readouterr().err == ""
