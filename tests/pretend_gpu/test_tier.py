"""Starts pytest again, in a process that has the pretended GPU: its own cases, and the tests marked `cuda`."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.pretend_gpu import build

CASES = "tests/pretend_gpu/cases"

A_FEW = (
    "tests/data/test_batches.py::test_on_a_gpu_a_batch_is_copied_without_waiting",
    "tests/data/test_features.py::test_on_cuda_a_batch_is_the_same_as_on_the_cpu",
    "tests/models/test_packing.py::test_on_a_gpu_packed_equals_padded_in_half_precision",
    "tests/training/test_cuda_graphs.py::test_on_a_gpu_a_replay_waits_for_nothing[kd]",
    "tests/training/test_cuda_graphs.py::test_on_a_gpu_each_replay_draws_new_dropout_masks",
)
"""Where the `cuda` tests are that run by default: those that take about a second each."""

NEED_A_REAL_ONE = (
    "tests/benchmark",  # measures memory in processes of its own
    "tests/runtime/test_compute.py::test_on_a_gpu_a_run_ends_near_one_on_the_cpu[true",  # compiles for the GPU
    "tests/training/test_cuda_graphs.py::test_on_a_gpu_compiled_steps",
)

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


def run(*arguments):
    """How many tests passed on the pretended GPU; the test fails where one does not, or where none ran."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretend_gpu.plugin", "-p", "no:xdist"]
    command += ["-p", "no:cacheprovider", "--tb=short", "-q", "-rfE", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    assert " passed" in last, last
    return int(last.split(" passed")[0].split()[-1])


def test_the_cases_and_a_few_of_the_tests_of_a_gpu_pass():
    assert run(CASES, *A_FEW) > 30


@pytest.mark.slow
def test_all_tests_of_a_gpu_that_need_no_real_one_pass():
    left_out = [option for name in NEED_A_REAL_ONE for option in ("--deselect", name)]
    assert run("-m", "cuda", *left_out, "tests") > 28


@pytest.mark.slow
def test_the_slow_cases_hold():
    assert run("-m", "slow", CASES) > 30


def test_this_process_has_no_pretended_gpu():
    assert "tests.pretend_gpu.torch_cuda" not in sys.modules
