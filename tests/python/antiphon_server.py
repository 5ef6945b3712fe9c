"""A server process for clients to talk to: ANTIPHON_BIN, or the debug build."""

import os
import pathlib
import resource
import select
import signal
import subprocess
import time

from antiphon_client import PATIENCE, Client, mint

SECRET = "python-tests-only-0123456789-0123456789"
ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("ANTIPHON_BIN", ROOT / "target" / "debug" / "antiphon")


class Server:
    """Started at once, on free ports, with its data in `folder`. `file_bytes_max`: no file may grow past it."""

    def __init__(self, folder, *flags, shards=2, file_bytes_max=None):
        self.folder = folder
        self.flags = flags
        self.shards = shards
        self.file_bytes_max = file_bytes_max
        self.start()

    def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        environment |= {"ANTIPHON_JWT_SECRET": SECRET, "ANTIPHON_ADMIN_TOKEN": "python-tests-admin"}
        command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--shards", str(self.shards),
                   "--pin", "off", "--drain-ms", "1000", "--data-dir", os.path.join(self.folder, "data"), *self.flags]
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=log,
                                            preexec_fn=self.limit if self.file_bytes_max else None)
        lines = self.read_lines(3)
        assert lines[0].startswith("antiphon ready"), lines
        self.url = lines[1].split()[1]
        self.control = lines[2].split()[1]

    def limit(self):
        # Without the signal that would end the process: a write fails as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes_max, resource.RLIM_INFINITY))

    def unlimit(self):
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

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
