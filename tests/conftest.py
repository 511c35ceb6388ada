"""Every test runs offline (whatever leaves this machine, from here or from a started process, is a failure), and with
a cache of its own.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which else asks the hub about its caller
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is; tiny models only wait for a second thread

import contextlib
import gc
import runpy
import sys
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch

from reptile_distil import cli
from tests.helpers.disk_faults import forked_scripts
from tests.helpers.guard import sitecustomize as guard
from tests.helpers.paths import ROOT, TINY

guard.install()


# A busy machine is no failure, and the same examples each time.
hypothesis.settings.register_profile("ours", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("ours")


@pytest.fixture(autouse=True, scope="module")
def modules_are_no_garbage():
    """Every run collects garbage; in a process with all these libraries that takes most of a tiny run's time."""
    if len(sys.modules) > _seen[-1] + 100:
        gc.collect()
        gc.freeze()
        _seen.append(len(sys.modules))


_seen = [0]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's cache of tokenised data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session", autouse=True)
def network_attempts(tmp_path_factory):
    """The file in which the guard notes what a test, or a process that it started, tried to reach."""
    file = tmp_path_factory.mktemp("network") / "attempts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWORK_ATTEMPTS", str(file))
        patch.setenv("WITHOUT_MATPLOTLIB", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(guard.__file__).parent), *_old_path()]))
        yield file


@pytest.fixture(autouse=True)
def no_network(monkeypatch, network_attempts):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    yield
    if network_attempts.exists():
        hosts = network_attempts.read_text().split()
        network_attempts.unlink()
        pytest.fail(f"the test tried to reach {', '.join(hosts)}")


def _old_path():
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a tiny run; the tests of pictures ask for it, also in a started process."""
    monkeypatch.setattr("reptile_distil.experiments.run.draw_after_run", lambda folder: None)
    monkeypatch.setattr("reptile_distil.tables.pictures.can_draw", lambda: False)


@pytest.fixture
def call(tmp_path, capsys):
    """Runs a script's main in this process: its exit code, stdout and stderr."""

    def call(name, *arguments, config=TINY):
        options = ["--config", str(config)] if config else []
        main = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
        try:
            code = cli.run(main, [*options, f"runs_dir={tmp_path}/runs", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="session")
def script(network_attempts, tmp_path_factory):
    """Runs a script in a process of its own, but in a second: `script("distil", "seed=1")` is how it ended."""
    with forked_scripts(tmp_path_factory.mktemp("scripts")) as run:
        yield run


@pytest.fixture
def no_waits():
    """`with no_waits():` whatever waits for the GPU inside is an error; behind it nothing is any more."""
    return _waits_refused


@contextlib.contextmanager
def _waits_refused():
    try:
        _set_sync_debug_mode("error")
        yield
    finally:
        _set_sync_debug_mode("default")


def _set_sync_debug_mode(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of the mode itself, once in a process
        torch.cuda.set_sync_debug_mode(mode)


def pytest_collection_modifyitems(items):
    """Without a GPU the tests of one are skipped, not failed."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
