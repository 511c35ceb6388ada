"""Pytest plugin: the whole process has the pretended GPU. `pytest -p tests.pretend_gpu.plugin -p no:xdist ...`."""

from tests.pretend_gpu import build

build.load()

from tests.pretend_gpu.torch_cuda import install  # noqa: E402 (the guard must be there before torch is)

install()
