"""A server process for the tests: ANTIPHON_BIN, or the debug build."""

import os
import pathlib
import select
import signal
import subprocess
import tempfile
import time

import pytest

from antiphon_client import PATIENCE, Client, mint

SECRET = "python-tests-only-0123456789-0123456789"
ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ANTIPHON_BIN", ROOT / "target" / "debug" / "antiphon")


class Server:
    def __init__(self, folder, *flags):
        self.folder = folder
        self.flags = flags
        self.start()

    def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        environment |= {"ANTIPHON_JWT_SECRET": SECRET, "ANTIPHON_ADMIN_TOKEN": "python-tests-admin"}
        command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--shards", "2",
                   "--pin", "off", "--drain-ms", "1000", "--data-dir", os.path.join(self.folder, "data"), *self.flags]
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=log)
        lines = self.read_lines(3)
        assert lines[0].startswith("antiphon ready"), lines
        self.url = lines[1].split()[1]
        self.control = lines[2].split()[1]

    def read_lines(self, count):
        until, text = time.monotonic() + PATIENCE, b""
        while text.count(b"\n") < count:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                self.stop(signal.SIGKILL)
                raise AssertionError(f"not ready: {text!r} {pathlib.Path(self.folder, 'log').read_text()}")
            text += chunk
        return text.decode().splitlines()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code

    def client(self, user, device=None, **claims):
        return Client(self.url, mint(SECRET, user, **claims), device)


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
