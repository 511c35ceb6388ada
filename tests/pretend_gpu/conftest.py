"""The cases are collected in a process that has the pretended GPU alone; `test_tier` starts one."""

import sys

import pytest

collect_ignore = [] if "tests.pretend_gpu.torch_cuda" in sys.modules else ["cases"]


@pytest.fixture
def gpu():
    """The pretended GPU, with nothing noted of what was done before."""
    from tests.pretend_gpu.device import GPU

    GPU.forget()
    return GPU
