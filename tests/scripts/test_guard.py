"""The guard against the network itself."""

import socket
import subprocess
import sys

import pytest

HOST = "192.0.2.1"  # kept for documentation (RFC 5737): nobody answers there


def seen(network_attempts):
    """What the guard has noted, forgotten now, so that the test of the guard is no failure."""
    hosts = network_attempts.read_text().split()
    network_attempts.unlink()
    return hosts


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection((HOST, 80), timeout=0.1),
        lambda: socket.socket().connect_ex((HOST, 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", (HOST, 53)),
        lambda: socket.getaddrinfo("huggingface.co", 443),
        lambda: socket.gethostbyname("huggingface.co"),
    ],
    ids=["connection", "connect_ex", "datagram", "getaddrinfo", "gethostbyname"],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_leaves_this_machine_is_refused_and_noted(network_attempts, reach):
    with pytest.raises(ConnectionRefusedError, match="a test tried to reach"):
        reach()
    assert seen(network_attempts)[0] in (HOST, "huggingface.co")


def test_a_process_that_a_test_starts_is_guarded_too(network_attempts):
    code = f"import socket; socket.create_connection(('{HOST}', 80), timeout=0.1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"a test tried to reach {HOST}" in done.stderr
    assert seen(network_attempts) == [HOST]


def test_this_machine_itself_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
