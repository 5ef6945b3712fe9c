"""A client of Antiphon, written from the protocol page alone.

It says commands and waits for their replies, keeps events in order, keeps a cursor (epoch, seq) for
each room it listens to, and comes back with those cursors. Blocking, one thread, for tests and for
reading; needs the package `websockets`.
"""

import base64
import collections
import contextlib
import hashlib
import hmac
import itertools
import json
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

#: Longest that anything is waited for, seconds.
PATIENCE = 20


class Refused(Exception):
    """An `error` reply. `code` is the number, `reply` the whole object."""

    def __init__(self, reply):
        super().__init__(f"{reply['code']} {reply['error']}: {reply['message']}")
        self.code = reply["code"]
        self.reply = reply


class Closed(Exception):
    """The connection is over. The range of `code` says what to do next."""

    def __init__(self, code, reason):
        super().__init__(f"closed with {code} {reason}")
        self.code = code
        self.reason = reason


def mint(secret, user, ttl=3600, **claims):
    """A token signed with HS256. A claim given as None is left out."""
    now = int(time.time())
    payload = {"sub": user, "iat": now, "exp": now + ttl, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}

    def part(value):
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    message = part({"alg": "HS256", "typ": "JWT"}) + "." + part(payload)
    return message + "." + part(hmac.new(secret.encode(), message.encode(), hashlib.sha256).digest())


class Client:
    """One connection. `hello` is the first frame; `events` holds what came and was not asked for yet."""

    def __init__(self, url, token, device=None, wait=True, **options):
        if device is not None:
            url += ("&" if "?" in url else "?") + f"device={device}"
        options.setdefault("subprotocols", ["antiphon.v1"])
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        # No compression, as in a plain browser-like client; pongs are answered by the library.
        connecting = connect(url, additional_headers=headers, compression=None, max_size=None, proxy=None,
                             open_timeout=PATIENCE, close_timeout=PATIENCE, ping_interval=None, **options)
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(connecting)
        self.events = collections.deque()
        self._batch = collections.deque()
        self.arrays = 0
        self.cursors = {}
        self._ids = itertools.count(1)
        self.hello = self.receive() if wait else None
        if wait:
            assert self.hello["type"] == "hello", self.hello

    def receive(self, timeout=PATIENCE):
        """The next reply or event, parsed. Log entries advance their room's cursor, and may not skip a seq."""
        frame = self._batch.popleft() if self._batch else self._read(timeout)
        if "id" not in frame and "seq" in frame:
            self._advance(frame)
        return frame

    def _read(self, timeout):
        try:
            text = self.socket.recv(timeout)
        except ConnectionClosed as end:
            received = end.rcvd
            raise Closed(received.code if received else 1006, received.reason if received else "") from None
        frame = json.loads(text)
        self._heard(text, frame)
        if isinstance(frame, list):
            self.arrays += 1
            self._batch.extend(frame)
            frame = self._batch.popleft()
        return frame

    def _heard(self, text, frame):
        """For those who look at frames as they came."""

    def _advance(self, entry):
        cursor = self.cursors.get(entry["room"])
        if cursor is not None:
            # A filter's stand-in may tell of several neighbours.
            first = entry.get("from", entry["seq"])
            assert first == cursor["seq"] + 1, f"a silent gap: {cursor} then {entry}"
            cursor["seq"] = entry["seq"]

    def say(self, type, **fields):
        """Sends a command, and returns its id."""
        identifier = next(self._ids)
        self.socket.send(json.dumps({"type": type, "id": identifier, **fields}))
        return identifier

    def reply(self, identifier):
        """Waits for the reply to a command. Raises `Refused`."""
        while True:
            frame = self.receive()
            if frame.get("id") == identifier:
                if frame["type"] == "error":
                    raise Refused(frame)
                assert frame["type"] == "ok", frame
                return frame
            self.events.append(frame)

    def ask(self, type, **fields):
        """Sends a command and waits for its `ok`."""
        return self.reply(self.say(type, **fields))

    def listen(self, type, room, **fields):
        """`room:join` or `room:subscribe`: with the cursor, if there is one."""
        cursor = self.cursors.pop(room, None)
        reply = self.ask(type, room=room, **({"since": cursor} if cursor else {}), **fields)
        if cursor and reply["recovered"]:
            self.cursors[room] = cursor
            for entry in reply["events"]:
                self._advance(entry)
                self.events.append(entry)
            assert cursor["seq"] == reply["seq"], reply
        self.cursors[room] = {"epoch": reply["epoch"], "seq": reply["seq"]}
        return reply

    def event(self, type):
        """The next event of a type; others keep their place."""
        for at, frame in enumerate(self.events):
            if frame["type"] == type and "id" not in frame:
                del self.events[at]
                return frame
        while True:
            frame = self.receive()
            if frame["type"] == type and "id" not in frame:
                return frame
            self.events.append(frame)

    def nothing(self, type, wait=0.2):
        """Nothing of a type comes for a while."""
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0:
            try:
                self.events.append(self.receive(left))
            except TimeoutError:
                break
        assert not [frame for frame in self.events if frame["type"] == type]

    def end(self):
        """Waits for the end of the connection, and returns its close code."""
        try:
            while True:
                self.events.append(self.receive())
        except Closed as closed:
            return closed.code

    def close(self):
        self._open.close()
