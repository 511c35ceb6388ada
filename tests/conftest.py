"""Every test runs offline: whatever leaves this machine, from here or from a started process, is a failure."""

import os
from pathlib import Path

import pytest

from tests.guard import sitecustomize as guard

guard.install()


@pytest.fixture(scope="session", autouse=True)
def network_attempts(tmp_path_factory):
    """The file in which the guard notes what a test, or a process that it started, tried to reach."""
    file = tmp_path_factory.mktemp("network") / "attempts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWORK_ATTEMPTS", str(file))
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
    """Drawing takes longer than a tiny run; the tests of pictures ask for it."""
    monkeypatch.setattr("reptile_distil.experiment.draw_after_run", lambda folder: None)
