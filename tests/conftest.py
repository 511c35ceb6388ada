"""Every test runs offline: a connection to another machine is a failure."""

import socket

import pytest


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


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a tiny run; the tests of pictures ask for it."""
    monkeypatch.setattr("reptile_distil.experiment.draw_after_run", lambda folder: None)
