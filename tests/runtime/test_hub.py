import http.server
import socket
import threading
import time

import huggingface_hub
import pytest

from reptile_distil.errors import DataError, ModelError
from reptile_distil.runtime import hub


@pytest.fixture(autouse=True)
def own_network(monkeypatch):
    """No offline switch, no proxy, and a new HTTP client: only what a test sets counts."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def serve(monkeypatch):
    """Call `serve(status)` to make HF_ENDPOINT a server that answers every HEAD request with that status."""
    servers = []

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent_endpoint(monkeypatch):
    """HF_ENDPOINT is a port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


@pytest.mark.parametrize("status", [200, 302, 401, 404, 405, 429])
def test_a_hub_that_answers_is_reachable(serve, status):
    serve(status)
    assert hub.hub_is_reachable()


@pytest.mark.parametrize("status", [403, 407, 502, 503])
def test_a_proxy_that_answers_instead_is_not_the_hub(serve, status):
    serve(status)
    assert not hub.hub_is_reachable()


def test_a_closed_port_is_not_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub.hub_is_reachable()


@pytest.mark.parametrize("address", ["no address at all", "http://", "huggingface.co"])
def test_an_endpoint_that_is_no_url_is_not_reachable(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert not hub.hub_is_reachable()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_an_offline_switch_forbids_even_the_question(serve, monkeypatch, name, value):
    serve(200)
    monkeypatch.setattr(hub, "_answers", lambda _: pytest.fail("the network was asked"))
    monkeypatch.setenv(name, value)
    assert not hub.hub_is_reachable()


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_an_offline_switch_that_is_off_forbids_nothing(serve, monkeypatch, value):
    serve(200)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.hub_is_reachable()


def test_a_silent_hub_is_given_up_after_three_seconds(silent_endpoint, monkeypatch):
    assert hub.TIMEOUT == 3.0
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    start = time.monotonic()
    assert not hub.hub_is_reachable()
    assert time.monotonic() - start < 1.0


def test_a_name_look_up_that_hangs_is_given_up_too(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(hub, "_answers", lambda _: released.wait(10))
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    start = time.monotonic()
    assert not hub.hub_is_reachable()
    assert time.monotonic() - start < 1.0
    released.set()


def test_require_hub_is_silent_when_the_hub_answers(serve):
    serve(200)
    hub.require_hub("model x", "pass a folder")


def test_require_hub_says_what_why_and_what_to_do(silent_endpoint, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    reason = r"http://127\.0\.0\.1:\d+ cannot be reached \(waited up to 0\.1 seconds\)"
    with pytest.raises(DataError, match=f"^model x is not in the local cache and {reason}: pass a folder$"):
        hub.require_hub("model x", "pass a folder")


def test_require_hub_names_the_switch_that_forbids_the_download(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_DATASETS_OFFLINE=1 forbids a download: pass a folder"):
        hub.require_hub("model x", "pass a folder")


def test_require_hub_raises_the_callers_own_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError):
        hub.require_hub("model x", "pass a folder", error=ModelError)


def test_inside_asked_once_the_hub_is_asked_once_and_outside_again(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda url: asked.append(url) or len(asked) == 1)
    with hub.reachability_cached():
        assert [hub.hub_is_reachable() for _ in range(3)] == [True, True, True]
    assert len(asked) == 1
    assert [hub.hub_is_reachable() for _ in range(2)] == [False, False]
    assert len(asked) == 3
