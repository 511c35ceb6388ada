"""Refuses what leaves this machine, and notes it in the file $NETWORK_ATTEMPTS.

tests/conftest.py installs it in the tests' own process, and puts this folder on PYTHONPATH: Python imports a module of
this name at its start, so that the processes which tests start are guarded too.
"""

import os
import socket
import sys
from pathlib import Path

LOCAL = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname())
_CONNECT, _CONNECT_EX, _SENDTO = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
_GETADDRINFO, _GETHOSTBYNAME = socket.getaddrinfo, socket.gethostbyname


def _check(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in LOCAL:
        return
    with Path(os.environ["NETWORK_ATTEMPTS"]).open("a") as file:
        file.write(f"{host}\n")
    raise ConnectionRefusedError(f"a test tried to reach {host}")


def _check_address(connection, address):
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        _check(address[0])


def _connect(self, address):
    _check_address(self, address)
    return _CONNECT(self, address)


def _connect_ex(self, address):
    _check_address(self, address)
    return _CONNECT_EX(self, address)


def _sendto(self, *arguments):
    _check_address(self, arguments[-1])
    return _SENDTO(self, *arguments)


def _getaddrinfo(host, *arguments, **options):
    _check(host)
    return _GETADDRINFO(host, *arguments, **options)


def _gethostbyname(host):
    _check(host)
    return _GETHOSTBYNAME(host)


def install():
    """Guards this process from now on."""
    socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = _connect, _connect_ex, _sendto
    socket.getaddrinfo, socket.gethostbyname = _getaddrinfo, _gethostbyname


if "NETWORK_ATTEMPTS" in os.environ:
    install()
if "WITHOUT_MATPLOTLIB" in os.environ:
    sys.modules["matplotlib"] = None
