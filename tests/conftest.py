"""Every test runs offline (a connection to another machine is a failure) and with a cache of its own."""

import runpy
import socket
from pathlib import Path

import hypothesis
import pytest

from reptile_distil import cli

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"

# A busy machine is no failure, and the same examples each time.
hypothesis.settings.register_profile("ours", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("ours")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """No test reads or writes the user's cache of tokenised data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            pytest.fail(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


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
