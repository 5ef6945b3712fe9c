"""Servers for the tests."""

import signal
import tempfile

import pytest

from antiphon_server import SECRET, Server  # noqa: F401 (tests take SECRET from here)


@pytest.fixture
def start():
    """Starts servers with flags of their own, and ends them."""
    servers, folders = [], []

    def begin(*flags):
        folders.append(tempfile.TemporaryDirectory(prefix="antiphon-python-"))
        servers.append(Server(folders[-1].name, *flags))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
    for folder in folders:
        folder.cleanup()


@pytest.fixture(scope="module")
def server():
    """One server for a file; its tests use rooms and users of their own."""
    with tempfile.TemporaryDirectory(prefix="antiphon-python-") as folder:
        server = Server(folder)
        yield server
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
