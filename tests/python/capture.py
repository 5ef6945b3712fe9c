"""The parts of scripts/capture-examples that know no story: clients that remember what passed over the
wire, values that differ on each run made steady, and the page with its tables.

A frame is kept as parsed JSON, in its order; `Recorder` asserts that writing it down again gives the
bytes that came, so what the page shows is what was said.
"""

import base64
import json
import os
import re
import socket
import struct
import urllib.request
from urllib.parse import urlsplit

from antiphon_client import PATIENCE, Client, Closed, Refused

BEGIN, END = "<!-- captured: begin (scripts/capture-examples writes this) -->", "<!-- captured: end -->"


def compact(value):
    """JSON as the server writes it: no spaces, UTF-8 as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Recorder(Client):
    """A client whose frames come out byte for byte as they came in. `said` is the last command."""

    def _heard(self, text, frame):
        if text.startswith('{"type":"hello"'):
            text = text.rstrip(" ")  # They fill it up.
        assert compact(frame) == text, f"not compact: {text}"
        self.frame = frame

    def say(self, type, **fields):
        identifier = next(self._ids)
        self.said = {"type": type, "id": identifier, **fields}
        self.socket.send(compact(self.said))
        return identifier

    def until(self, type, match):
        """The next event of a type that matches; earlier ones of that type are passed over."""
        while True:
            frame = self.event(type)
            if match(frame):
                return frame


class Raw:
    """A client by hand, for what a library rightly does not do: silence, slowness, broken frames."""

    def __init__(self, url, token, receive_bytes=None):
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        head = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
                f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Authorization: Bearer {token}"]
        self.socket.sendall("\r\n".join([*head, "", ""]).encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self._more()
        answer, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert b" 101 " in answer, answer
        # `hello`: from here on the session is open.
        self.json("hello")

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise Closed(1006, "")
        return data

    def _take(self, size):
        while len(self.buffer) < size:
            self.buffer += self._more()
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def send(self, first_byte, payload, masked=True):
        """One frame, right or wrong."""
        assert len(payload) < 65536
        bit = 0x80 if masked else 0
        head = struct.pack("!BB", first_byte, bit | len(payload)) if len(payload) < 126 else (
            struct.pack("!BBH", first_byte, bit | 126, len(payload)))
        self.socket.sendall(head + (bytes(4) if masked else b"") + payload)

    def say(self, type, **fields):
        self.said = {"type": type, **fields}
        self.send(0x81, compact(self.said).encode())

    def receive(self):
        """The next text as parsed JSON; pings are read and not answered. Raises `Closed`."""
        while True:
            first, second = self._take(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            payload = self._take(size)
            if first == 0x88:
                # The echo, so that the server knows that it was read.
                self.send(0x88, payload[:2])
                raise Closed(struct.unpack("!H", payload[:2])[0], payload[2:].decode())
            if first == 0x81:
                return json.loads(payload)

    def json(self, type):
        while True:
            frame = self.receive()
            if frame["type"] == type:
                return frame

    def end(self):
        try:
            while True:
                self.receive()
        except Closed as closed:
            self.closed = closed
            return closed.code
        finally:
            self.socket.close()


def request(server, path, body=None, method=None):
    """One call of the admin API."""
    headers = {"Authorization": "Bearer python-tests-admin", "Content-Type": "application/json"}
    data = None if body is None else compact(body).encode()
    call = urllib.request.Request(server.control + path, data, headers, method=method)
    with urllib.request.urlopen(call, timeout=PATIENCE) as answer:
        return json.load(answer)


#: What times are shown as; a second for each seq, so that they ascend.
STEADY_TS = 1795560000000
#: How far the times that lie ahead lie ahead.
AHEAD = {"token_expires_ts": 3_600_000, "expires_ts": 604_800_000}
TIMES = {"ts", "token_expires_ts", "expires_ts", "edited_ts", "last_seen", "last_activity", "first_seen", "from_ts",
         "failed_ts", "dead_ts"}
#: What a run measures: lengths of time, and tries, of which a stalled machine makes more.
LENGTHS = {"online_ms": 5_000, "took_ms": 5, "attempt": 1,
           "queue_us": 150, "gather_us": 30, "commit_us": 720, "fanout_us": 100, "total_us": 1_000}
#: Numbers that name something: the n-th one that the page shows gets the n-th of these.
NAMES = {"session": "5e551000000000{:02x}", "epoch": "9ad1c7805ec97e{:02x}", "trace": "8d3f0000000000{:02x}",
         "hash": "b7e1516200000{:03x}"}


#: A hash that clients make up.
WRONG = "0123456789abcdef"


class Steady:
    """Replaces what differs on each run; the same value is always replaced by the same."""

    def __init__(self, frames):
        self.seen = {name: [] for name in NAMES}
        # Versions of presence only grow: their order is kept.
        self.versions = {}
        for card in cards(frames):
            self.versions.setdefault(card["user"], set()).add(card["version"])

    def __call__(self, value, name=None, within=None):
        if isinstance(value, dict):
            return {key: self(inner, key, value) for key, inner in value.items()}
        if isinstance(value, list):
            return [self(inner, name, within) for inner in value]
        if name in NAMES and isinstance(value, str) and re.fullmatch("[0-9a-f]{8,64}", value) and value != WRONG:
            seen = self.seen[name]
            if value not in seen:
                seen.append(value)
            return NAMES[name].format(seen.index(value) + 1)
        if isinstance(value, bool) or value is None:
            return value
        if name in TIMES and value:
            return STEADY_TS + 1_000 * (within.get("seq") or 0) + AHEAD.get(name, 0)
        if name in LENGTHS:
            return LENGTHS[name]
        if name == "retry_after_ms" and value:
            return 100
        if name == "id":
            return 1
        if name == "token":
            return "eyJ…"
        if name == "version" and "status" in within:
            return sorted(self.versions[within["user"]]).index(value) + 1
        return value


def cards(value):
    """Every status of a user, wherever it is."""
    if isinstance(value, dict):
        if "status" in value and "version" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from cards(inner)


def keys(value):
    """Every name of a field. What clients put into `data` and `meta`, and emoji, are theirs."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if name not in ("data", "meta", "reactions"):
                yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def code(value, steady):
    """Inline code for a cell of a table."""
    text = compact(steady(value))
    assert "|" not in text and "`" not in text, f"breaks the table: {text}"
    return f"`{text}`"


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


__all__ = ["BEGIN", "END", "WRONG", "Client", "Closed", "Raw", "Recorder", "Refused", "Steady", "code", "compact", "keys",
           "request", "table"]
