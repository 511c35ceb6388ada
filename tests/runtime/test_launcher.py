"""What a launcher says of its processes, and that it takes no PyTorch to hear it."""

import subprocess
import sys

import pytest

from reptile_distil.runtime.launcher import launched_count, launched_rank, launched_several


@pytest.mark.parametrize(
    ("variables", "count", "several", "rank"),
    [
        ({}, "1", False, 0),
        ({"RANK": "3"}, "1", False, 0),  # left over from somewhere else
        ({"WORLD_SIZE": "1", "RANK": "0"}, "1", False, 0),
        ({"WORLD_SIZE": "4", "RANK": "3"}, "4", True, 3),
        ({"WORLD_SIZE": "4"}, "4", True, 0),
    ],
)
def test_the_launchers_variables_say_how_many_processes_there_are_and_which_this_is(
    monkeypatch, variables, count, several, rank
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched_count(), launched_several(), launched_rank()) == (count, several, rank)


def test_asking_loads_no_pytorch():
    code = "import sys, reptile_distil.runtime.launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
