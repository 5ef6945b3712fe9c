"""docs/WEBSOCKET_API.md shows what the server says, byte for byte, and shows all of it."""

import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "capture-examples"


def test_the_page_is_what_the_server_does():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
