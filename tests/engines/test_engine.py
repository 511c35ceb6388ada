"""The interface of engines: what comes after what, what a lost job costs, and what is refused; without Ray or Slurm."""

import os
import stat
import sys
from importlib.util import find_spec

import pytest

from reptile_distil.config.table_sections import EngineConfig, RayConfig, SlurmConfig
from reptile_distil.engines import engine as engines
from reptile_distil.engines.engine import FailedBeforeError, JobError, LocalEngine, Lost, RemoteEngine
from reptile_distil.engines.slurm_engine import SlurmEngine
from reptile_distil.engines.start import make_engine, process_parameters, python_that_sees, sbatch_parameters
from reptile_distil.engines.worker import run_job
from reptile_distil.errors import ConfigError, MissingExtraError
from reptile_distil.tables.config import load_table_config
from tests.helpers.paths import TINY_TABLE


class Elsewhere(RemoteEngine):
    """Runs the jobs here, the last one started first; those in `dies` lose their process so many times."""

    def __init__(self, *, retries=2, max_running=None, dies=None):
        super().__init__(retries, max_running)
        self.dies = dict(dies or {})
        self.started = []

    def __exit__(self, *_):
        pass

    def _start(self, jobs):
        self.started.append([job.name for job in jobs])

    def _ended(self, jobs):
        job = jobs[-1]
        if self.dies.get(job.name, 0) > 0:
            self.dies[job.name] -= 1
            return [(job, Lost("its process has died"))]
        return [(job, job.function(*job.arguments))]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(engines, "POLL_SECONDS", 0.0)


@pytest.mark.parametrize("make", [LocalEngine, Elsewhere])
def test_a_job_is_not_started_before_those_it_comes_after(make):
    order = []
    with make() as engine:
        first = engine.submit(order.append, "teacher", name="teacher")
        last = engine.submit(lambda: order.append("student") or "done", name="student", after=[first])
        # None is `not now`: what these return is put right below.
        engine._jobs[0].function = lambda name: order.append(name) or name
        assert list(engine.as_completed()) == [first, last]
    assert order == ["teacher", "student"]
    assert (first.result(), last.result()) == ("teacher", "done")


@pytest.mark.parametrize("make", [LocalEngine, Elsewhere])
def test_behind_a_failed_job_nothing_is_started_and_the_others_go_on(make):
    started = []
    with make() as engine:
        failed = engine.submit(lambda: JobError("too small"), name="teacher")
        behind = engine.submit(started.append, 1, name="student", after=[failed])
        furthest = engine.submit(started.append, 1, name="grandchild", after=[behind])
        other = engine.submit(lambda: "done", name="other")
        assert set(engine.as_completed()) == {failed, behind, furthest, other}
    assert started == []
    assert isinstance(behind.exception(), FailedBeforeError)
    assert str(behind.exception()) == str(furthest.exception()) == "too small"
    assert other.result() == "done"


def test_here_a_job_that_another_process_is_at_is_come_back_to():
    answers = {"a": [None, None, "a"], "b": ["b"]}
    order = []
    with LocalEngine() as engine:
        for name in answers:
            engine.submit(lambda name=name: answers[name].pop(0), name=name)
        order = [future.result() for future in engine.as_completed()]
    assert order == ["b", "a"]


@pytest.mark.parametrize(("deaths", "succeeds"), [(0, True), (1, True), (2, True), (3, False)])
def test_a_lost_job_is_started_again_as_often_as_allowed(deaths, succeeds, caplog):
    engine = Elsewhere(retries=2, dies={"kd": deaths})
    future = engine.submit(lambda: "done", name="kd")
    assert list(engine.as_completed()) == [future]
    assert engine.started == [["kd"]] * (min(deaths, 2) + 1)
    assert sum("started again" in message for message in caplog.messages) == min(deaths, 2)
    if succeeds:
        assert future.result() == "done"
    else:
        assert str(future.exception()) == "its process has died"


def test_what_is_due_together_is_started_together_up_to_the_limit():
    engine = Elsewhere(max_running=2)
    for name in "abc":
        engine.submit(lambda name=name: name, name=name)
    assert [future.result() for future in engine.as_completed()] == ["b", "c", "a"]
    assert engine.started == [["a", "b"], ["c"]]


def test_a_job_writes_its_log_into_a_file_and_returns_its_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail():
        sys.stdout.write("printed")
        raise ZeroDivisionError("by zero")

    failure = run_job(tmp_path / "logs" / "a.log", tmp_path, fail)
    assert isinstance(failure, JobError)
    assert str(failure) == f"ZeroDivisionError: by zero (traceback in {tmp_path}/logs/a.log)"
    text = (tmp_path / "logs" / "a.log").read_text()
    assert "printed" in text
    assert "Traceback" in text


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_without_its_package_one_sentence_names_the_extra(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'reptile-distil\[{name}\]'"):
        make_engine(EngineConfig(name=name), tmp_path, "table", use_gpus=False)


@pytest.mark.parametrize("only", ["--only-table", "--print-commands", "--dry-run"])
def test_an_engine_is_refused_where_no_cell_is_run(call, only):
    code, _, err = call("table", "--engine", "ray", only, config=TINY_TABLE)
    assert (code, err) == (2, f"error: --engine has no effect on {only}: leave one of them out\n")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["engine.ray.gpus_per_cell=0.1"], "engine.ray has no effect on engine local"),
        (["engine.name=ray", "engine.slurm.partition=gpu"], "engine.slurm has no effect on engine ray"),
        (["engine.name=rya"], "engine.name = 'rya'"),
        (["engine.ray.gpus=1"], "unknown key 'engine.ray.gpus'"),
        (["engine.name=slurm", "engine.slurm.minutes=0"], "engine.slurm.minutes = 0"),
        *(
            (["engine.name=slurm", "engine.slurm.cluster=local", option], f"{key} has no effect with engine.slurm.clu")
            for option in ("partition=gpu", "memory_gb=4", "options={account: mine}", "setup=[module load cuda]")
            for key, option in [(f"engine.slurm.{option.partition('=')[0]}", f"engine.slurm.{option}")]
        ),
    ],
)
def test_options_of_engines_are_checked_before_anything_starts(overrides, reason):
    with pytest.raises(ConfigError) as refused:
        load_table_config(TINY_TABLE, overrides)
    assert reason in str(refused.value)


def test_printed_commands_run_each_cell_in_its_own_process_whatever_the_file_says(call, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {TINY_TABLE}\nengine: {{name: slurm, slurm: {{partition: gpu}}}}\n")
    code, out, _ = call("table", "--print-commands", config=file)
    assert code == 0
    assert all("engine.name=local" in line for line in out.splitlines())
    assert len(out.splitlines()) == 6


def test_a_device_that_is_not_here_is_no_fault_where_an_engine_computes():
    overrides = ["device=cuda", "tasks=[toy-sentence]"]
    load_table_config(TINY_TABLE, [*overrides, "engine.name=slurm"])
    with pytest.raises(ConfigError, match="cuda"):
        load_table_config(TINY_TABLE, overrides)


def test_slurms_options_reach_submitit():
    slurm = SlurmConfig(
        partition="gpu", minutes=90, gpus_per_cell=1, cpus_per_cell=4, memory_gb=1.5, options={"account": "mine"}
    )
    assert sbatch_parameters(slurm, "table") == {
        "job_name": "table",
        "time": 90,
        "partition": "gpu",
        "gpus_per_node": 1,
        "cpus_per_task": 4,
        "mem": "1536MB",
        "array_parallelism": 256,
        "signal_delay_s": 120,
        "additional_parameters": {"account": "mine"},
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"setup": ("module load cuda",)}, "engine.slurm.setup: are shell lines"),
        ({"gpus_per_cell": 1, "parallel": 2}, "all jobs get the same GPUs"),
        ({"gpus_per_cell": 1, "parallel": 1}, None),
        ({"gpus_per_cell": 0, "parallel": 2}, None),
        ({"gpus_per_cell": 1, "parallel": 2, "cpus_per_cell": 8}, None),  # one at a time
    ],
)
def test_what_processes_of_this_machine_cannot_have_is_refused(options, reason, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    slurm = SlurmConfig(cluster="local", partition="gpu", **options)  # a file for Slurm may be tried here
    if reason is None:
        assert process_parameters(slurm, use_gpus=True) == {"timeout_min": 240, "signal_delay_s": 120}
    else:
        with pytest.raises(ConfigError, match=reason):
            process_parameters(slurm, use_gpus=True)


@pytest.mark.parametrize(
    ("parallel", "num_gpus", "use_gpus"), [(2, 1, True), (1, 1, True), (2, 0, True), (2, 1, False)]
)
def test_the_gpus_of_the_command_are_not_those_of_several_processes_at_once(parallel, num_gpus, use_gpus, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    slurm = SlurmConfig(cluster="local", parallel=parallel)
    if (parallel, num_gpus, use_gpus) == (2, 1, True):
        with pytest.raises(ConfigError, match=r"gpus_per_cell = null: .* all jobs get the same GPUs: .* or 0 GPUs"):
            process_parameters(slurm, use_gpus=use_gpus)
    else:
        process_parameters(slurm, use_gpus=use_gpus)


@pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit")
@pytest.mark.parametrize(
    ("visible", "gpus_per_cell", "seen"),
    [("2", None, "2"), (None, None, "unset"), ("GPU-5ce1, 3,4", 2, "GPU-5ce1,3"), (None, 2, "0,1"), ("2", 0, "")],
)
def test_processes_of_this_machine_see_gpus_of_the_command(visible, gpus_per_cell, seen, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    slurm = SlurmConfig(cluster="local", parallel=1, gpus_per_cell=gpus_per_cell)
    with make_engine(EngineConfig(name="slurm", slurm=slurm), tmp_path, "table", use_gpus=True) as engine:
        future = engine.submit(os.getenv, "CUDA_VISIBLE_DEVICES", "unset", name="look")
        assert list(engine.as_completed()) == [future]
    assert future.result() == seen


@pytest.mark.parametrize("visible", ["2", "2,-1,3", "2,"])
def test_more_gpus_than_the_command_sees_are_refused(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(
        ConfigError, match=rf"gpus_per_cell = 2: CUDA_VISIBLE_DEVICES = '{visible}' has 1: give no more"
    ):
        python_that_sees(2)


@pytest.fixture
def pretended_slurm(tmp_path, monkeypatch):
    """Commands of Slurm that keep what they are given; every job's node dies."""
    commands = {
        "srun": "true",
        "sbatch": f'echo sbatch >> {tmp_path}/calls; cp "$1" {tmp_path}/submitted.sh; echo Submitted batch job 7',
        "sacct": "echo 'JobID|State|NodeList'; echo '7_[0-1]|NODE_FAIL|n1'; echo '7|NODE_FAIL|n1'",
        "scancel": f'echo "scancel $*" >> {tmp_path}/calls',
    }
    for name, text in commands.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path


# Not imported here: submitit reads its signal when it is imported, and `SlurmEngine` says which before.
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_of_slurm_are_one_array_which_is_submitted_again_when_its_nodes_die(pretended_slurm):
    parameters = sbatch_parameters(SlurmConfig(partition="gpu", options={"account": "mine"}), "table")
    with SlurmEngine(pretended_slurm / "logs", cluster="slurm", parameters=parameters, retries=1) as engine:
        futures = [engine.submit(len, name, name=name) for name in ("a", "b")]
        assert set(engine.as_completed()) == set(futures)
    assert all("NODE_FAIL" in str(future.exception()) for future in futures)
    text = (pretended_slurm / "submitted.sh").read_text()
    for line in ("--partition=gpu", "--account=mine", "--signal=USR1@120", "--job-name=table"):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH --array=0-1%2\n" in text


def test_without_slurm_the_engine_is_refused_in_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r'engine\.slurm: Could not detect "srun"'):
        make_engine(EngineConfig(name="slurm"), tmp_path, "table", use_gpus=False)


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path):
    pytest.importorskip("ray")
    config = EngineConfig(name="ray", ray=RayConfig(address="127.0.0.1:1"))
    engine = make_engine(config, tmp_path, "table", use_gpus=False)
    with pytest.raises(ConfigError, match=r"engine\.ray\.address: no Ray cluster answers at 127\.0\.0\.1:1"):
        engine.__enter__()
