#!/usr/bin/env python3
"""A chat client in one file, with nothing but the standard library.

    python3 scripts/client.py 'ws://127.0.0.1:8080/ws?access_token=…' [room]

Type a line to send it. When the connection is lost, it comes back and resumes from the last
message it saw. It knows only docs/WEBSOCKET_API.md and is meant to be read.
"""

import asyncio
import base64
import json
import os
import random
import struct
import sys
import threading
from urllib.parse import urlsplit


class Closed(Exception):
    """The connection is over; `code` says what to do next (see the table of close codes)."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed with {code} {reason}".strip())
        self.code = code


class WebSocket:
    """RFC 6455, the client's half: text frames, ping and close."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, url):
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        key = base64.b64encode(os.urandom(16)).decode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = [
            f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: antiphon.v1",
        ]
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
        status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode()
        if " 101 " not in status + " ":
            writer.close()
            raise ConnectionError(f"the server said {status}")
        return cls(reader, writer)

    async def send(self, message):
        self._frame(1, json.dumps(message).encode())
        await self.writer.drain()

    def _frame(self, opcode, payload):
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        mask = os.urandom(4)
        self.writer.write(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))

    async def receive(self):
        """The next message, as parsed JSON."""
        while True:
            try:
                first, second = await self.reader.readexactly(2)
                size = second & 127
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(size)
            except asyncio.IncompleteReadError:
                raise Closed(1006) from None
            opcode = first & 15
            if opcode == 1:
                return json.loads(payload)
            if opcode == 8:
                code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                raise Closed(code, payload[2:].decode(errors="replace"))
            if opcode == 9:
                self._frame(10, payload)


class Chat:
    """One room over as many connections as it takes."""

    def __init__(self, url, room):
        self.url, self.room = url, room
        self.cursor = None
        self.socket = None
        self.waiting = {}

    async def run(self, lines):
        asyncio.ensure_future(self.type(lines))
        pause = 0.5
        while True:
            try:
                self.socket = await WebSocket.connect(self.url)
                await self.join()
                pause = 0.5
                while True:
                    await self.hear(await self.socket.receive())
            except (OSError, Closed) as end:
                self.socket = None
                code = getattr(end, "code", 0)
                print(f"-- {end}", flush=True)
                if 4000 <= code < 4100 or code == 4203:
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 15)

    async def join(self):
        command = {"type": "room:join", "id": "join", "room": self.room}
        if self.cursor:
            command["since"] = self.cursor
        await self.socket.send(command)
        # What was typed while nobody listened, or what nobody acknowledged: the same client_id again,
        # so that it is stored once however often it is sent.
        for message in list(self.waiting.values()):
            await self.socket.send(message)

    async def type(self, lines):
        while True:
            line = await lines.get()
            if not line:
                # End of input: say goodbye when everything is acknowledged.
                while self.waiting or not self.socket:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.3)
                os._exit(0)
            body = line.rstrip("\n")
            if not body:
                continue
            key = base64.urlsafe_b64encode(os.urandom(9)).decode()
            message = {"type": "message:send", "id": key, "room": self.room, "body": body, "client_id": key}
            self.waiting[key] = message
            if self.socket:
                await self.socket.send(message)

    async def hear(self, event):
        kind = event.get("type")
        if kind == "hello":
            print(f"-- hello {event['user']} on {event['device']}", flush=True)
        elif kind == "ok" and event.get("id") == "join":
            if self.cursor and not event["recovered"]:
                print("-- missed too much to replay; history has the rest", flush=True)
            if not self.cursor or not event["recovered"]:
                self.cursor = {"epoch": event["epoch"], "seq": event["seq"]}
            print(f"-- in {self.room}, {event['members']} members, at {event['seq']}", flush=True)
            for missed in event.get("events") or []:
                self.show(missed)
        elif kind == "ok":
            self.waiting.pop(event.get("id"), None)
        elif kind == "error":
            print(f"-- {event['code']} {event['error']}: {event['message']}", flush=True)
            if event.get("temporary"):
                asyncio.ensure_future(self.again(event.get("id"), event["retry_after_ms"] / 1000))
            else:
                self.waiting.pop(event.get("id"), None)
        elif kind == "gap":
            print(f"-- gap after {event['last']}, head {event['head']}", flush=True)
        else:
            self.show(event)

    async def again(self, key, pause):
        await asyncio.sleep(pause + random.random() / 10)
        if self.socket and key in self.waiting:
            await self.socket.send(self.waiting[key])

    def show(self, event):
        if event.get("room") == self.room and "seq" in event:
            if self.cursor and event["seq"] <= self.cursor["seq"]:
                return
            self.cursor = {"epoch": self.cursor["epoch"], "seq": event["seq"]} if self.cursor else None
        if event.get("type") == "message:created":
            # repr of what others wrote: a terminal must not obey it.
            body = "".join(c if c.isprintable() else repr(c)[1:-1] for c in event["body"])
            print(f"{event['seq']:>6} {event['author']}: {body}", flush=True)
        elif event.get("type", "").startswith("room:"):
            print(f"{event['seq']:>6} {event['type']} {event.get('user', '')}", flush=True)


async def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    lines = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    await Chat(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "general").run(lines)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
