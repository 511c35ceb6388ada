"""Two processes are one run: the same weights, the same scores, one set of files, one message."""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import accelerate
import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from reptile_distil import cli
from reptile_distil.errors import ConfigError, RunError
from reptile_distil.methods.step import split_batch
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runtime import processes
from reptile_distil.runtime.compute import choose_device
from reptile_distil.runtime.processes import ALONE, Processes, start_processes
from tests.helpers import two_processes
from tests.helpers.models import bert
from tests.helpers.paths import ROOT, TINY
from tests.runs.test_resume import contents


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def environment(**variables):
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default", **variables}


def run_both(folder, tier):
    """What each of two processes computed."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-m", "tests.helpers.two_processes", str(folder), tier]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment(RANK=rank, LOCAL_RANK=rank, **shared))
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=600) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="module")
def both(folder):
    return run_both(folder, "quick")


def assert_equals_one_process(both, where, job):
    """Weights and logs of 10 to 20 steps; ranks to the bit, one process to 1e-5."""
    one = two_processes.train(*job)
    first, second = (results[where, *job] for results in both)
    for model in ("teacher", "student"):
        for name, weight in one[model].items():
            assert torch.equal(first[model][name], second[model][name]), name
            torch.testing.assert_close(first[model][name], weight, rtol=0, atol=1e-5, msg=name)
    for name, value in one["logs"].items():
        assert torch.equal(first["logs"][name], second["logs"][name]), name
        torch.testing.assert_close(first["logs"][name], value, rtol=1e-5, atol=1e-8, msg=name)


def check_resumed(both, folder):
    """The signal that one process got has stopped both at the same step; both have gone on as if nothing had been."""
    assert [results["stop"] for results in both] == [(143, 10), (143, 10)]
    whole, stopped = (contents(folder / name, "reptile") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert [name for name in whole if whole[name] != stopped[name]] == []


# Two processes, one result


@pytest.mark.parametrize("job", two_processes.WHOLE)
def test_two_processes_train_teacher_and_student_as_one_does(both, job):
    assert_equals_one_process(both, "whole", job)


@pytest.mark.parametrize("job", two_processes.SHARDED["quick"])
def test_two_sharded_processes_train_teacher_and_student_as_one_does(both, job):
    assert_equals_one_process(both, "sharded", job)


@pytest.mark.slow
def test_two_sharded_processes_train_with_every_method_as_one_does_and_go_on_after_a_signal(tmp_path):
    both = run_both(tmp_path, "slow")
    check_resumed(both, tmp_path)
    for job in two_processes.SHARDED["slow"]:
        assert_equals_one_process(both, "sharded", job)


def test_training_moves_both_models_so_that_equal_weights_mean_something():
    trained = two_processes.train("reptile-adamw", "even")
    for start, model in (
        (bert(4, seed=1, dtype=torch.float64), "teacher"),
        (bert(2, seed=2, dtype=torch.float64), "student"),
    ):
        largest = max((weight - trained[model][name]).abs().max() for name, weight in start.named_parameters())
        assert largest > 1e-3


def test_with_dropout_both_processes_still_hold_the_same_weights(both):
    first, second = (results["dropout"] for results in both)
    for model in ("teacher", "student"):
        assert all(torch.equal(first[model][name], second[model][name]) for name in first[model])


def test_each_process_draws_its_own_dropout_masks_and_the_first_those_of_a_lone_one(both):
    first, second = (results["exchange"]["random numbers"] for results in both)
    assert not torch.isclose(first, second).any()
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(4))


@pytest.mark.parametrize("kind", ["logits", "sharded logits"])
@pytest.mark.parametrize("num_rows", [1, 5, 7, 8])
def test_each_dev_row_counts_once_also_where_batches_do_not_divide_evenly(both, kind, num_rows):
    """In batches of two rows: 1, 3, 4 and 4 batches, the last of them often of one row."""
    one = two_processes.evaluate(ALONE)[num_rows]
    assert one.shape == (num_rows, 3)
    for results in both:
        torch.testing.assert_close(results[kind][num_rows], one, rtol=0, atol=0 if kind == "logits" else 1e-6)


@pytest.mark.parametrize("shard", [False, True])
def test_the_teachers_drift_counts_every_weight_once(both, shard):
    num_weights = sum(weight.numel() for weight in bert(2).parameters())
    for results in both:
        assert results["drift"][shard] == pytest.approx(num_weights**0.5, rel=1e-4)


# What the processes exchange


def test_each_process_knows_its_place(both):
    assert [results["exchange"]["rank and count"] for results in both] == [(0, 2), (1, 2)]


def test_a_sum_is_taken_over_both_processes_whatever_the_shapes_and_dtypes(both):
    for results in both:
        vector, scalar = results["exchange"]["sums"]
        assert vector.tolist() == [3.0, 6.0]  # (1, 2) * 1 + (1, 2) * 2
        assert scalar.dtype == torch.int64
        assert scalar.item() == 7  # 3 + 4


def test_the_main_process_decides_for_both_and_fails_for_both(both):
    for results in both:
        assert results["exchange"]["decided"] == "by 0"
        assert results["exchange"]["fault"] == "no room"


def test_both_start_from_the_main_processs_weights(both):
    expected = bert(1, seed=0).state_dict()
    for results in both:
        assert all(torch.equal(results["exchange"]["shared weights"][name], expected[name]) for name in expected)


def test_sums_are_taken_in_buckets_that_keep_the_order_and_mix_no_dtypes(monkeypatch):
    monkeypatch.setattr(processes, "BUCKET_SIZE", 5)
    shapes = [(2,), (3,), (1,), (7,), (4,), ()]
    tensors = [torch.zeros(shape) for shape in shapes] + [torch.zeros(1, dtype=torch.float64)]
    buckets = list(processes._buckets(tensors))
    assert [[tuple(tensor.shape) for tensor in bucket] for bucket in buckets] == [
        [(2,), (3,)],
        [(1,)],
        [(7,)],
        [(4,), ()],
        [(1,)],
    ]


def test_one_process_exchanges_nothing():
    tensor = torch.tensor([1.0])
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([2.0])
    ALONE.sum_([tensor])
    ALONE.sum_gradients([weight])
    assert (tensor.item(), weight.grad.item(), ALONE.on_main(lambda: 5)) == (1.0, 2.0, 5)
    assert not torch.distributed.is_initialized()
    with pytest.raises(RunError, match="no room"):
        ALONE.on_main(two_processes.refuse)


# Who computes which rows


@pytest.mark.parametrize(
    ("num_rows", "micro_batch_size", "expected"),
    [
        (4, None, [[([0, 2], 0.5)], [([1, 3], 0.5)]]),
        (5, None, [[([0, 2, 4], 0.6)], [([1, 3], 0.4)]]),
        (5, 2, [[([0, 2], 0.4), ([4], 0.2)], [([1, 3], 0.4), ([0], 0.0)]]),
        (1, None, [[([0], 1.0)], [([0], 0.0)]]),
        (1, 8, [[([0], 1.0)], [([0], 0.0)]]),
        (6, 2, [[([0, 2], 2 / 6), ([4], 1 / 6)], [([1, 3], 2 / 6), ([5], 1 / 6)]]),
    ],
)
def test_every_row_is_one_processs_and_both_have_equally_many_micro_batches(num_rows, micro_batch_size, expected):
    whole = {"labels": torch.arange(num_rows), "input_ids": torch.arange(num_rows)[:, None] * 10}
    for rank, parts in enumerate(expected):
        got = list(split_batch(whole, micro_batch_size, Processes(rank, 2)))
        assert [(part["labels"].tolist(), share) for part, share in got] == parts
        assert all((part["input_ids"][:, 0] == part["labels"] * 10).all() for part, _ in got)


# Sharded models


def test_each_process_holds_about_half_of_a_sharded_models_weights(both):
    num_weights = sum(weight.numel() for weight in bert(4).parameters())
    parts = [results["part and whole"][0] for results in both]
    assert sum(parts) == num_weights
    assert all(0.49 * num_weights < part < 0.51 * num_weights for part in parts)


def test_the_main_process_gets_an_ordinary_model_with_all_weights_of_a_sharded_one(both):
    model = bert(4, seed=1)
    name, config, state = both[0]["part and whole"][1]
    assert name == "BertForSequenceClassification"
    assert len(config["id2label"]) == 3
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert both[1]["part and whole"][1] is None


# What is refused


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_a_launcher_is_refused(monkeypatch, missing):
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE is 2, but {missing} is not set"):
        start_processes("cpu")


@pytest.mark.parametrize(("device", "message"), [("mps", "takes one process"), ("cuda", "more processes than GPUs")])
def test_a_device_that_not_every_process_can_have_is_refused(monkeypatch, device, message):
    launcher = {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        start_processes(device)


def test_sharding_is_refused_for_one_process(tmp_path):
    from reptile_distil.experiments.experiment import Experiment

    with pytest.raises(ConfigError, match=r"distributed\.shard = True: takes several processes"):
        Experiment.from_yaml(TINY, "distributed.shard=true", f"runs_dir={tmp_path}")


def test_accelerates_cpu_option_is_heeded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cpu"
    assert choose_device("cuda") == "cuda"


def test_a_process_beside_the_main_one_prints_nothing_and_waits_before_it_tells_of_a_fault(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert cli.run(lambda _: sys.stdout.write("a table")) == 0
    assert cli.run(lambda _: two_processes.refuse()) == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "error: process 1: no room\n")
    assert waited == [cli.SECONDS_FOR_THE_MAIN_PROCESS]


# Interrupted and gone on with


def test_a_signal_to_one_process_stops_both_and_they_go_on_to_the_same_bits(both, folder):
    check_resumed(both, folder)


def test_the_main_processs_callback_fails_for_both_and_the_run_goes_on_to_the_same_bits(both, folder):
    (faults, num_calls), (others, num_others) = (results["callback"] for results in both)
    assert faults == others
    (at_epoch, first), (in_step, second) = faults
    run = "of reptile on toy-sentence: ValueError"
    assert at_epoch == f"callback FailsInStep.on_epoch_end failed after epoch 1 {run}: after an epoch"
    assert in_step == f"callback FailsInStep.on_step_end failed after step 7 {run}: in the main process"
    assert (first, second) == ("step-00000005-evaluated", "step-00000010")  # both had to come to the same step
    assert (num_calls, num_others) == (5 + 5 + 2 + 5, 0)  # the teacher's 5 too; after a fault none until it is known
    models = [
        load_file(folder / name / "toy-sentence/reptile-seed42/model/model.safetensors") for name in ("whole", "faulty")
    ]
    assert models[0].keys() == models[1].keys()
    for name, weight in models[0].items():
        assert torch.equal(weight, models[1][name]), name


def test_a_callbacks_wish_to_stop_is_granted_when_both_processes_know_of_it(both):
    assert both[0]["told"] == both[1]["told"] == [None] * 9 + ["Stops.on_step_end"] + [None]


def test_what_two_processes_began_one_can_finish_with_a_warning_about_its_dropout(both, folder, caplog):
    caplog.set_level("WARNING", logger="reptile_distil")  # whatever a script has set it to
    results = two_processes.experiment(folder / "left", folder / "teacher").fit()
    assert (results["num_steps"], results["num_processes"]) == (15, 1)
    assert "began as 2 processes and goes on as 1" in caplog.text
    lines = (folder / "left" / "toy-sentence" / "reptile-seed42" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"epoch"' in line and '"event": "epoch"' in line] == [
        5,
        10,
        15,
    ]


# Whole scripts under the launchers


def launch(launcher, *arguments, timeout=300):
    """A script under a launcher for two processes: exit code, stdout and stderr."""
    started = subprocess.run(
        [*launcher, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return started.returncode, started.stdout, started.stderr


def torchrun():
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]


def accelerate_launch():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2"]
    # --cpu would start one process, whatever --num_processes says.
    return [*command, "--multi_gpu", f"--main_process_port={free_port()}"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Options of a small run, its eps as in two_processes, and its folder. The toy models have no dropout."""
    folder = tmp_path_factory.mktemp("plain")
    eps = ["train.adam_eps=1e-4", "teacher.train.adam_eps=1e-4", "reptile.inner_eps=1e-4"]
    options = ["--config", TINY, "device=cpu", "train.epochs=3", "data.max_train_rows=71", *eps]
    main = runpy.run_path(str(ROOT / "scripts" / "distil.py"))["main"]
    assert cli.run(main, [*map(str, options), f"runs_dir={folder}/runs"]) == 0
    return options, folder / "runs" / "toy-sentence"


def assert_same_run(folder, expected):
    for run in ("teacher-seed42", "reptile-seed42"):
        weights, expected_weights = (
            load_file(path / run / "model" / "model.safetensors") for path in (folder, expected)
        )
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5, msg=name)
        lines, expected_lines = (
            [json.loads(line) for line in (path / run / "metrics.jsonl").read_text().splitlines()]
            for path in (folder, expected)
        )
        assert [(line["event"], line["step"]) for line in lines] == [
            (line["event"], line["step"]) for line in expected_lines
        ]
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line.get("scores") == expected_line.get("scores")
            assert line.get("teacher_scores") == expected_line.get("teacher_scores")
            assert line.get("loss") == pytest.approx(expected_line.get("loss"), abs=1e-5)
            assert line.get("gap") == pytest.approx(expected_line.get("gap"), abs=1e-4)
            assert line.get("teacher_drift") == pytest.approx(expected_line.get("teacher_drift"), abs=1e-4)
        results, expected_results = (
            json.loads((path / run / "results.json").read_text()) for path in (folder, expected)
        )
        assert results["scores"] == expected_results["scores"]
        assert (results["num_processes"], expected_results["num_processes"]) == (2, 1)


def check_script(launcher, plain, tmp_path, *more):
    options, expected = plain
    code, out, err = launch(launcher, "scripts/distil.py", *options, f"runs_dir={tmp_path}", *more)
    assert code == 0, err
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")] == [
        "run",
        "teacher",
        "reptile",
    ]
    assert err.count("reptile on toy-sentence:") == 1
    assert_same_run(tmp_path / "toy-sentence", expected)


def test_under_torchrun_the_script_leaves_the_run_that_one_process_leaves(plain, tmp_path):
    check_script(torchrun(), plain, tmp_path)


@pytest.mark.slow
def test_under_accelerate_launch_the_script_leaves_the_run_that_one_process_leaves(plain, tmp_path):
    check_script(accelerate_launch(), plain, tmp_path)


@pytest.mark.slow
def test_a_sharded_script_leaves_the_run_that_one_process_leaves(plain, tmp_path):
    check_script(torchrun(), plain, tmp_path, "distributed.shard=true")


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_nodes_that_meet_at_an_address_leave_the_run_that_one_process_leaves(plain, tmp_path, shard):
    """As two machines do: a launcher on each, of one process, with the rendezvous of scripts/README.md."""
    options, expected = plain
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
    words += ["--rdzv_id=1", f"--rdzv_endpoint=localhost:{free_port()}", "scripts/distil.py", *map(str, options)]
    words += [f"runs_dir={tmp_path}", f"distributed.shard={shard}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen(words, cwd=ROOT, env=environment(), **pipes) for _ in range(2)]
    said = [node.communicate(timeout=180) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_same_run(tmp_path / "toy-sentence", expected)


@pytest.mark.slow
def test_a_folder_in_use_ends_all_processes_with_one_sentence(tmp_path):
    folder = tmp_path / "toy-sentence" / "finetune-seed42"
    with RunFolder(folder).claimed():
        code, out, err = launch(
            torchrun(), "scripts/distil.py", "--config", TINY, "method=finetune", f"runs_dir={tmp_path}", timeout=120
        )
    assert (code, out) == (1, "")
    said = [line for line in err.splitlines() if "error: " in line]
    assert said == [f"error: {folder}: another process is running in this folder"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_when_one_process_is_killed_the_run_ends_within_seconds(tmp_path, rank):
    options = ["--config", str(TINY), "device=cpu", "method=finetune", "train.epochs=100000", f"runs_dir={tmp_path}"]
    job = subprocess.Popen(
        [*torchrun(), "scripts/distil.py", *options], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "toy-sentence" / "finetune-seed42" / "metrics.jsonl"
    try:
        for _ in range(120):
            time.sleep(0.5)
            if metrics.exists() and metrics.stat().st_size:
                break
        (victim,) = [child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == rank]
        killed = time.monotonic()
        victim.kill()
        _, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert time.monotonic() - killed < 20
    assert job.returncode != 0
    assert "exitcode  : -9" in err
    assert not (metrics.parent / "results.json").exists()


LAUNCHER = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def with_one_gpu(monkeypatch):
    """Process 3 of 4, which sees one GPU; a function that says which GPUs the four see."""
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="own"))
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: SimpleNamespace(process_index=3, num_processes=4))
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "new_group", lambda backend: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda group=None: None)

    def see(*gpus):
        def gather(gathered, own, group):
            assert (own, group) == ("own", "gloo")
            gathered[:] = gpus

        monkeypatch.setattr(dist, "all_gather_object", gather)

    return see


def test_each_process_may_see_a_gpu_of_its_own_alone(monkeypatch, with_one_gpu):
    """As Slurm's --gpus-per-task=1 shows it: GPU 0 of one, whatever the process's number is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with_one_gpu("a", "b", "c", "own")
    assert start_processes("cuda") == Processes(rank=3, count=4)


def test_one_gpu_for_several_processes_is_refused(monkeypatch, with_one_gpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with_one_gpu("own", "own", "own", "own")
    with pytest.raises(ConfigError, match="more processes than GPUs: PyTorch finds 1 here; start one process for each"):
        start_processes("cuda")


def test_without_a_launcher_that_chooses_one_gpu_is_too_few(monkeypatch, with_one_gpu):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="more processes than GPUs: PyTorch finds 1 here"):
        start_processes("cuda")
