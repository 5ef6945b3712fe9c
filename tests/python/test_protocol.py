"""Every command, event and error code of the protocol page that is built, as a third party reads it."""

import json
import signal
import time
import urllib.request

import pytest
from websockets.exceptions import InvalidStatus

from antiphon_client import Client, Closed, Refused, mint
from conftest import SECRET


def refused(code, call, *arguments, **fields):
    """The call is refused with `code`; the reply has exactly the fields of an error."""
    with pytest.raises(Refused) as caught:
        call(*arguments, **fields)
    reply = caught.value.reply
    assert reply["code"] == code, reply
    assert set(reply) - {"current"} == {"type", "id", "code", "error", "message", "temporary", "retry_after_ms"}
    assert isinstance(reply["message"], str) and isinstance(reply["retry_after_ms"], int)
    assert reply["temporary"] is (code in (100, 111, 113, 117))
    return reply


def fields(frame, *required, optional=()):
    """Exactly these fields, and those of the optional ones that are there."""
    assert set(required) <= set(frame) <= set(required) | set(optional), frame
    return frame


def rolling_hash(room, entries):
    """The hash of a room's first entries, by the steps of docs/WEBSOCKET_API.md."""
    mask = 2**64 - 1

    def step(value, number):
        mixed = (value ^ number) * 0x9E3779B97F4A7C15 & mask
        return mixed ^ mixed >> 32

    value = 0xCBF29CE484222325
    for byte in room.encode():
        value = (value ^ byte) * 0x100000001B3 & mask
    for entry in entries:
        value = step(step(value, entry["seq"]), entry["ts"])
    return f"{value:016x}"


def is_now(ts):
    return abs(ts - time.time() * 1000) < 10_000


def test_hello(server):
    client = server.client("hal", "phone-1")
    hello = fields(client.hello, "type", "session", "user", "device", "epoch", "ts", "heartbeat_ms", "token_expires_ts",
                   "rooms", "limits", "inbox")
    assert (hello["user"], hello["device"], hello["inbox"], hello["rooms"]) == ("hal", "phone-1", 0, [])
    assert is_now(hello["ts"]) and is_now(hello["token_expires_ts"] - 3_600_000)
    assert {"message_bytes_max", "rooms_max", "dedupe_window_ms", "resume_events_max"} <= set(hello["limits"])
    assert client.socket.subprotocol == "antiphon.v1"
    client.listen("room:join", "hello-room")
    second = server.client("hal", "phone-2")
    assert second.hello["rooms"] == [{"room": "hello-room", "seq": 1, "read": 1, "delivered": 1, "unread": 0, "role": "owner"}]
    assert second.hello["epoch"] == hello["epoch"] and second.hello["session"] != hello["session"]


def test_ping_and_ids(server):
    client = server.client("pia")
    assert is_now(fields(client.ask("ping"), "type", "id", "ts")["ts"])
    for identifier in ("text", "x" * 64, 0, -5, 2**63 - 1, "ü😀"):
        client.socket.send(json.dumps({"type": "ping", "id": identifier}))
        assert client.receive()["id"] == identifier
    # Without an id there is no ok, and an error without id.
    client.socket.send('{"type":"ping"}')
    client.socket.send('{"type":"nonsense"}')
    error = client.receive()
    assert "id" not in error and (error["type"], error["code"], error["error"]) == ("error", 104, "unknown_type")
    client.socket.send(json.dumps({"type": "ping", "id": "x" * 65}))
    assert client.receive()["code"] == 107


def test_rooms(server):
    ann, bob = server.client("ann"), server.client("bob")
    created = ann.ask("room:create", room="club", kind="private", members=["bob"], title="The Club")
    assert fields(created, "type", "id", "room", "seq", optional=["ts"])["seq"] == 2
    assert refused(116, ann.ask, "room:create", room="club", kind="public")["error"] == "conflict"
    joined = fields(ann.listen("room:join", "club"), "type", "id", "room", "epoch", "seq", "role", "members",
                    "recovered", "events")
    assert (joined["seq"], joined["role"], joined["members"], joined["recovered"]) == (2, "owner", 2, False)
    assert joined["epoch"] == ann.hello["epoch"]
    subscribed = bob.listen("room:subscribe", "club")
    assert (subscribed["role"], subscribed["seq"]) == ("member", 2)

    ann.ask("room:invite", room="club", user="eve")
    event = fields(bob.event("room:joined"), "type", "room", "seq", "user", "by", "role", "ts")
    assert (event["room"], event["seq"], event["user"], event["by"], event["role"]) == ("club", 3, "eve", "ann", "member")
    ann.ask("room:role", room="club", user="eve", role="moderator")
    event = fields(bob.event("room:role_changed"), "type", "room", "seq", "user", "by", "role", "ts")
    assert (event["seq"], event["user"], event["role"]) == (4, "eve", "moderator")
    ann.ask("room:kick", room="club", user="eve")
    event = fields(bob.event("room:kicked"), "type", "room", "seq", "user", "by", "ts", optional=["role"])
    assert (event["seq"], event["user"], event["by"]) == (5, "eve", "ann")
    ann.ask("room:ban", room="club", user="mallory")
    assert bob.event("room:kicked")["user"] == "mallory"

    members = fields(ann.ask("room:members", room="club"), "type", "id", "members")
    here = [{"user": "ann", "role": "owner", "status": "online"}, {"user": "bob", "role": "member", "status": "online"}]
    assert all(member in members["members"] for member in here)
    page = ann.ask("room:members", room="club", limit=1)
    assert page["members"][0]["user"] == "ann" and page["next"] == "ann"
    listed = [room for room in ann.ask("room:list", kind="private")["rooms"] if room["room"] == "club"]
    assert fields(listed[0], "room", "kind", "title", "seq", "members", "role")["title"] == "The Club"

    bob.ask("room:leave", room="club")
    event = fields(ann.event("room:left"), "type", "room", "seq", "user", "ts")
    assert event["user"] == "bob"
    ann.ask("room:unsubscribe", room="club")
    del ann.cursors["club"]
    ann.ask("message:send", room="club", body="nobody listens")
    ann.nothing("message:created")


def test_messages(server):
    ann, bob = server.client("ann"), server.client("bob", "tablet")
    ann.listen("room:join", "talk")
    bob.listen("room:join", "talk")
    ack = ann.ask("message:send", room="talk", body="hello 😀 \u2028", client_id="m-1", thread=1, reply_to=1,
                  mentions=["bob"], attachments=["f1"], priority="critical", meta={"a": [1, None]})
    fields(ack, "type", "id", "room", "seq", "ts", "duplicate", "trace")
    assert (ack["room"], ack["seq"], ack["duplicate"]) == ("talk", 3, False)
    for client in (ann, bob):
        event = fields(client.event("message:created"), "type", "room", "seq", "ts", "author", "body", "client_id",
                       "thread", "reply_to", "mentions", "attachments", "priority", "meta", "trace")
        assert (event["author"], event["body"], event["client_id"]) == ("ann", "hello 😀 \u2028", "m-1")
        assert (event["seq"], event["ts"], event["trace"]) == (ack["seq"], ack["ts"], ack["trace"])
        assert (event["mentions"], event["priority"], event["meta"]) == (["bob"], "critical", {"a": [1, None]})
    again = ann.ask("message:send", room="talk", body="hello", client_id="m-1")
    assert (again["seq"], again["duplicate"]) == (3, True)
    bob.nothing("message:created")
    plain = ann.ask("message:send", room="talk", body="plain")
    fields(bob.event("message:created"), "type", "room", "seq", "ts", "author", "body", "trace")
    assert plain["seq"] == 4

    page = fields(bob.ask("message:history", room="talk", after=2), "type", "id", "events", "more")
    assert [entry["seq"] for entry in page["events"]] == [3, 4] and page["more"] is False
    page = bob.ask("message:history", room="talk", before=4, limit=2)
    assert [entry["seq"] for entry in page["events"]] == [2, 3] and page["more"] is True

    bob.ask("message:read", room="talk", seq=3)
    event = fields(ann.event("read:advanced"), "type", "room", "user", "read")
    assert (event["room"], event["user"], event["read"]) == ("talk", "bob", 3)

    ann.ask("event:send", room="talk", name="wave", data={"hand": "left"})
    event = fields(bob.event("event"), "type", "room", "author", "name", "data", optional=["ts"])
    assert (event["author"], event["name"], event["data"]) == ("ann", "wave", {"hand": "left"})

    checked = ann.ask("sync:check", rooms=[{"room": "talk", "seq": 4}, {"room": "talk", "seq": 1}, {"room": "talk", "seq": 9}])
    assert [room["state"] for room in checked["rooms"]] == ["ok", "behind", "diverged"]
    assert checked["rooms"][0] == {"room": "talk", "seq": 4, "state": "ok"}
    # By hash: computed from what was heard alone.
    entries = ann.ask("message:history", room="talk", after=0)["events"]
    value = rolling_hash("talk", entries)
    checked = ann.ask("sync:check", rooms=[{"room": "talk", "seq": 4, "hash": value}, {"room": "talk", "seq": 2, "hash": ""},
                                           {"room": "talk", "seq": 4, "hash": "0" * 16}])
    assert checked["rooms"] == [
        {"room": "talk", "seq": 4, "state": "ok", "hash": value},
        {"room": "talk", "seq": 4, "state": "behind", "hash": rolling_hash("talk", entries[:2])},
        {"room": "talk", "seq": 4, "state": "diverged", "hash": value},
    ]
    refused(107, ann.ask, "sync:check", rooms=[{"room": "talk", "seq": 4, "hash": "12"}])
    assert ann.ask("stats")["subscriptions"] == 1


def test_unread(server):
    ann, bob = server.client("una"), server.client("ulf", "tablet")
    ann.listen("room:join", "unread-room")
    ann.ask("message:send", room="unread-room", body="before ulf")
    bob.listen("room:join", "unread-room")
    for body in ("one", "two", "three"):
        ann.ask("message:send", room="unread-room", body=body)
    ann.ask("message:edit", room="unread-room", seq=4, body="uno")
    ann.ask("message:delete", room="unread-room", seq=5)

    def told(device):
        (room,) = server.client("ulf", device).hello["rooms"]
        return {key: room[key] for key in ("seq", "read", "delivered", "unread")}

    assert told("phone") == {"seq": 8, "read": 3, "delivered": 3, "unread": 2}
    bob.ask("message:delivered", room="unread-room", seq=8)
    bob.ask("message:read", room="unread-room", seq=4)
    assert told("phone") == {"seq": 8, "read": 4, "delivered": 4, "unread": 1}
    bob.close()
    assert told("tablet") == {"seq": 8, "read": 4, "delivered": 8, "unread": 1}
    phone = server.client("ulf", "phone")
    sent = phone.ask("message:send", room="unread-room", body="read you", read=True)
    assert sent["seq"] == 9
    assert told("laptop") == {"seq": 9, "read": 9, "delivered": 9, "unread": 0}


def test_edits(server):
    ann, bob = server.client("ann"), server.client("bob", "tablet")
    ann.listen("room:join", "drafts")
    bob.listen("room:join", "drafts")
    ann.ask("message:send", room="drafts", body="one", client_id="d-1")
    ack = fields(ann.ask("message:edit", room="drafts", seq=3, body="two", version=1), "type", "id", "room", "seq", "version")
    assert (ack["room"], ack["seq"], ack["version"]) == ("drafts", 4, 2)
    event = fields(bob.event("message:updated"), "type", "room", "seq", "target", "version", "body", "author", "ts")
    assert (event["seq"], event["target"], event["version"], event["body"], event["author"]) == (4, 3, 2, "two", "ann")
    lost = refused(116, ann.ask, "message:edit", room="drafts", seq=3, body="late", version=1)
    assert (lost["error"], lost["current"]) == ("conflict", 2)
    refused(103, bob.ask, "message:edit", room="drafts", seq=3, body="not mine")

    ack = fields(bob.ask("reaction:add", room="drafts", seq=3, emoji="👍"), "type", "id", "room", "seq", "count")
    assert (ack["seq"], ack["count"]) == (5, 1)
    event = fields(ann.event("reaction:added"), "type", "room", "seq", "target", "emoji", "author", "count", "ts")
    assert (event["target"], event["emoji"], event["author"], event["count"]) == (3, "👍", "bob", 1)
    assert bob.ask("reaction:add", room="drafts", seq=3, emoji="👍")["count"] == 1
    page = ann.ask("message:history", room="drafts", after=2, limit=1)["events"]
    shown = fields(page[0], "type", "room", "seq", "ts", "author", "client_id", "body", "trace", "version", "edited_ts",
                   "reactions")
    assert (shown["body"], shown["version"], shown["reactions"]) == ("two", 2, {"👍": 1})
    assert bob.ask("reaction:remove", room="drafts", seq=3, emoji="👍")["count"] == 0
    event = fields(ann.event("reaction:removed"), "type", "room", "seq", "target", "emoji", "author", "count", "ts")
    assert (event["seq"], event["count"]) == (6, 0)
    refused(107, bob.ask, "reaction:add", room="drafts", seq=3, emoji="x" * 33)

    ack = fields(ann.ask("message:delete", room="drafts", seq=3), "type", "id", "room", "seq", "version")
    assert (ack["seq"], ack["version"]) == (7, 3)
    event = fields(bob.event("message:deleted"), "type", "room", "seq", "target", "version", "author", "ts")
    assert (event["seq"], event["target"], event["version"]) == (7, 3, 3)
    refused(110, ann.ask, "message:delete", room="drafts", seq=3)
    page = ann.ask("message:history", room="drafts", after=2)["events"]
    shown = fields(page[0], "type", "room", "seq", "ts", "author", "client_id", "deleted", "version", "edited_ts")
    assert shown["deleted"] is True and [entry["seq"] for entry in page] == [3, 4, 5, 6, 7]
    assert "two" not in json.dumps(page) and "one" not in json.dumps(page)

    ack = fields(bob.ask("message:delivered", room="drafts", seq=3), "type", "id", "room", "seq")
    assert ack["seq"] == 3
    event = fields(ann.event("delivered:advanced"), "type", "room", "user", "device", "delivered")
    assert (event["user"], event["device"], event["delivered"]) == ("bob", "tablet", 3)


def test_filters_leave_no_hole(server):
    ann, bob, eve = server.client("ann"), server.client("bob"), server.client("eve")
    for client in (ann, bob, eve):
        client.listen("room:join", "whispers")
    ann.ask("message:send", room="whispers", body="psst", only=["bob"])
    ann.ask("message:send", room="whispers", body="aloud")
    assert [bob.event("message:created")["body"] for _ in range(2)] == ["psst", "aloud"]
    # Who may not see it still gets every seq once (the client asserts that), and not the body.
    assert eve.event("message:created")["body"] == "aloud"
    assert "psst" not in json.dumps(eve.ask("message:history", room="whispers"))


def test_error_codes(server, start):
    ann, bob = server.client("ann"), server.client("bob")
    ann.ask("room:create", room="den", kind="private")
    ann.listen("room:subscribe", "den")
    # 101
    assert refused(101, bob.ask, "auth:refresh", token=mint(SECRET, "ann"))["error"] == "unauthorized"
    refused(101, bob.ask, "auth:refresh", token="a.b.c")
    # 102
    assert refused(102, ann.ask, "message:send", room="no-such-room", body="x")["error"] == "unknown_room"
    refused(102, ann.ask, "room:subscribe", room="no-such-room")
    # 103
    for command in ({"type": "room:join"}, {"type": "room:subscribe"}, {"type": "message:history"},
                    {"type": "message:send", "body": "x"}, {"type": "room:invite", "user": "bob"}):
        assert refused(103, bob.ask, room="den", **command)["error"] == "permission_denied"
    reader = server.client("rita", rooms={"public-*": "r"})
    ann.listen("room:join", "public-1")
    reader.listen("room:subscribe", "public-1")
    refused(103, reader.ask, "message:send", room="public-1", body="x")
    refused(103, reader.ask, "room:join", room="elsewhere")
    # 104
    refused(104, ann.ask, "message:nonsense")
    # 107
    for command in ({"type": "message:send"}, {"type": "message:send", "room": "den", "body": ""},
                    {"type": "message:send", "room": "den", "body": "x" * 8193},
                    {"type": "message:history", "room": "den", "limit": 101}, {"type": "room:create", "room": "x"},
                    {"type": "event:send", "room": "den", "name": "n" * 65, "data": 1},
                    {"type": "room:subscribe", "room": "den", "since": {"seq": 1}}):
        assert refused(107, ann.ask, **command)["error"] == "bad_request"
    deep = "[" * 16 + "]" * 16
    ann.socket.send('{"type":"ping","x":' + deep + "}")
    assert ann.event("error")["code"] == 107
    # JSON that cannot be used, from a caller who waits: half of an emoji.
    refused(107, ann.ask, "message:send", room="den", body="cut \ud83d")
    # 109
    assert refused(109, ann.ask, "auth:refresh", token=mint(SECRET, "ann", ttl=-60))["error"] == "token_expired"
    # 110
    assert refused(110, ann.ask, "message:send", room="den", body="x", reply_to=999)["error"] == "not_found"
    refused(110, ann.ask, "room:kick", room="den", user="nobody")
    # 112
    since = {"epoch": ann.hello["epoch"], "seq": 999}
    assert refused(112, ann.ask, "room:subscribe", room="den", since=since)["error"] == "unrecoverable_cursor"
    # 116
    refused(116, bob.ask, "room:create", room="den", kind="public")
    # 106 and 111
    tight = start("--rooms-max", "1", "--connection-rate-per-s", "5", "--connection-burst", "10")
    carl = tight.client("carl")
    carl.listen("room:join", "one")
    assert refused(106, carl.ask, "room:join", room="two")["error"] == "limit_exceeded"
    replies = [carl.say("ping") for _ in range(20)]
    with pytest.raises(Refused) as caught:
        for identifier in replies:
            carl.reply(identifier)
    assert (caught.value.code, caught.value.reply["temporary"]) == (111, True)
    wait = caught.value.reply["retry_after_ms"]
    assert 0 < wait <= 250
    deadline = time.monotonic() + 5
    while True:
        time.sleep(wait / 1000)
        try:
            carl.ask("ping")
            break
        except Refused as again:
            assert again.code == 111 and time.monotonic() < deadline
            wait = again.reply["retry_after_ms"]


def test_tokens_and_closes(server, start):
    token = mint(SECRET, "tom")
    by_query = Client(server.url + "?access_token=" + token, None, "query")
    by_subprotocol = Client(server.url, None, "sub", subprotocols=["antiphon.v1", "bearer." + token])
    assert by_query.hello["user"] == by_subprotocol.hello["user"] == "tom"
    assert by_subprotocol.socket.subprotocol == "antiphon.v1"
    for bad in (mint("x" * 40, "tom"), mint(SECRET, "tom", ttl=-60), mint(SECRET, "tom", exp=None), mint(SECRET, "a b"),
                mint(SECRET, "tom", exp="soon"), mint(SECRET, "tom", nbf=int(time.time()) + 600), "garbage", None):
        assert Client(server.url, bad, wait=False).end() == 4001
    with pytest.raises(InvalidStatus) as caught:
        Client(server.url, token, origin="https://evil.example")
    assert caught.value.response.status_code == 403
    assert by_query.ask("auth:refresh", token=mint(SECRET, "tom", ttl=7200))["token_expires_ts"] > time.time() * 1000 + 7e6
    # The same device again.
    replacement = server.client("tom", "query")
    assert by_query.end() == 4203 and replacement.hello["device"] == "query"
    # The end of a token.
    brief = server.client("brief", ttl=2)
    assert brief.end() == 4201
    # Bytes.
    binary = server.client("bin")
    binary.socket.send(b"{}")
    assert binary.end() == 1003
    large = server.client("large")
    large.socket.send(json.dumps({"type": "ping", "pad": "x" * 17_000}))
    assert large.end() == 1009
    # Too many connections of one user.
    few = start("--user-connections-max", "2")
    kept = [few.client("tom", f"d{number}") for number in range(2)]
    assert Client(few.url, token, "d2", wait=False).end() == 4005
    # A stop: told first, then closed.
    few.process.send_signal(signal.SIGTERM)
    goaway = fields(kept[0].event("goaway"), "type", "reason", "retry_after_ms")
    assert goaway["reason"] == "draining" and goaway["retry_after_ms"] >= 0
    assert [client.end() for client in kept] == [4200, 4200]
    assert few.process.wait(20) == 0


def test_plain_http(server):
    base = server.url.replace("ws://", "http://").removesuffix("/ws")

    def get(path):
        try:
            with urllib.request.urlopen(base + path, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None

    assert get("/health/live")[0] == get("/health/ready")[0] == 200
    assert (get("/ws")[0], get("/elsewhere")[0]) == (426, 404)


def test_resume(server):
    ann, bob = server.client("ann"), server.client("bob")
    ann.listen("room:join", "resume")
    bob.listen("room:join", "resume")
    ann.ask("message:send", room="resume", body="seen")
    bob.event("message:created")
    cursors = bob.cursors
    bob.close()
    for number in range(30):
        ann.ask("message:send", room="resume", body=f"missed {number}")
    bob = server.client("bob")
    bob.cursors = cursors
    reply = bob.listen("room:subscribe", "resume")
    assert reply["recovered"] is True
    assert [bob.event("message:created")["body"] for _ in range(30)] == [f"missed {number}" for number in range(30)]
    # A cursor of another epoch, or too far back, is told, and nothing is replayed.
    bob.cursors["resume"] = {"epoch": "another", "seq": 5}
    reply = bob.listen("room:subscribe", "resume")
    assert (reply["recovered"], reply["events"], reply["seq"]) == (False, [], 33)
    ann.ask("message:send", room="resume", body="live")
    assert bob.event("message:created")["seq"] == 34


def test_resume_after_kill(start):
    server = start("--resume-events-max", "100")
    ann, bob = server.client("ann"), server.client("bob")
    ann.listen("room:join", "log")
    bob.listen("room:join", "log")
    sent = [ann.say("message:send", room="log", body=f"m{number}", client_id=f"c{number}") for number in range(50)]
    acks = [ann.reply(identifier) for identifier in sent]
    bob.event("message:created")
    cursor = dict(bob.cursors["log"])
    # In the middle of things: some of these are acknowledged, some are not.
    pending = [ann.say("message:send", room="log", body=f"p{number}", client_id=f"p{number}") for number in range(50)]
    acked = {}
    for number in range(10):
        acked[number] = ann.reply(pending[number])["seq"]
    server.stop(signal.SIGKILL)
    for client in (ann, bob):
        assert client.end() == 1006
    server.start()
    ann, bob = server.client("ann"), server.client("bob")
    assert ann.hello["epoch"] == cursor["epoch"], "the same history"
    seqs = [ann.ask("message:send", room="log", body=f"p{number}", client_id=f"p{number}")["seq"] for number in range(50)]
    assert all(seqs[number] == seq for number, seq in acked.items())
    assert len(set(seqs)) == 50 and sorted(seqs) == seqs
    assert ann.ask("message:send", room="log", body="m0", client_id="c0")["seq"] == acks[0]["seq"]
    bob.cursors["log"] = dict(cursor)
    reply = bob.listen("room:subscribe", "log")
    assert reply["recovered"] is True and reply["seq"] == 102
    stored = ann.ask("message:history", room="log", after=cursor["seq"], limit=100)["events"]
    assert list(bob.events) == stored
    bodies = [entry["body"] for entry in stored]
    assert sorted(bodies) == sorted({*bodies}), "nothing twice"


def test_filters(server):
    ann, bob = server.client("ann", "filters"), server.client("bob", "filters")
    ann.listen("room:join", "filtered")
    wanted = {"all": [{"field": "lang", "in": ["de", "en"]}, {"not": {"field": "level", "lt": 3}}]}
    joined = bob.listen("room:join", "filtered", filter=wanted)
    metas = [{"lang": "de", "level": 3}, {"lang": "fr"}, None, {"lang": "en"}, {"lang": "en", "level": 2}, {"lang": "de"}]
    for number, meta in enumerate(metas):
        ann.ask("message:send", room="filtered", body=str(number), **({"meta": meta} if meta else {}))
    assert [bob.event("message:created")["body"] for _ in range(3)] == ["0", "3", "5"]
    hidden = [frame for frame in bob.events if frame["type"] == "message:hidden"]
    told = [seq for frame in hidden for seq in range(frame.get("from", frame["seq"]), frame["seq"] + 1)]
    assert told == [joined["seq"] + 2, joined["seq"] + 3, joined["seq"] + 5]
    for frame in hidden:
        fields(frame, "type", "room", "seq", "ts", optional=("from",))
    bob.events.clear()
    bob.cursors["filtered"]["seq"] = joined["seq"]
    assert bob.listen("room:subscribe", "filtered", filter=wanted)["recovered"] is True
    assert [(frame["type"], frame["seq"] - joined["seq"]) for frame in bob.events] == [
        ("message:created", 1), ("message:hidden", 3), ("message:created", 4), ("message:hidden", 5),
        ("message:created", 6)]
    assert bob.events[1]["from"] == joined["seq"] + 2
    for filter in ({}, [], {"all": []}, {"field": "lang"}, {"field": "lang", "matches": "d.*"}):
        refused(107, bob.ask, "room:subscribe", room="filtered", filter=filter)


def test_arrays_and_stats(server):
    ann, bob = server.client("ann", "arrays"), server.client("bob", "arrays&batch=1")
    ann.listen("room:join", "arrays")
    bob.listen("room:join", "arrays")
    for _ in range(20):
        sent = [ann.say("message:send", room="arrays", body=str(number)) for number in range(50)]
        for identifier in sent:
            ann.reply(identifier)
        assert [bob.event("message:created")["body"] for _ in range(50)] == [str(number) for number in range(50)]
        if bob.arrays:
            break
        time.sleep(0.5)
    assert bob.arrays > 0 and ann.arrays == 0
    stats = bob.ask("stats")
    assert (stats["conflated"], stats["dropped_low"], stats["dropped_normal"]) == (0, 0, 0)


def test_admin_reaches_clients(server):
    ann = server.client("ann", "admin-test", jti="to-be-revoked")
    ann.listen("room:join", "news")

    def admin(path, body, **headers):
        headers |= {"Authorization": "Bearer python-tests-admin", "Content-Type": "application/json"}
        request = urllib.request.Request(server.control + "admin/" + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    first = admin("rooms/news/messages", {"body": "extra"}, **{"Idempotency-Key": "k1"})
    assert admin("rooms/news/messages", {"body": "extra"}, **{"Idempotency-Key": "k1"})["seq"] == first["seq"]
    assert ann.event("message:created")["body"] == "extra"
    admin("tokens/revoke", {"jti": "to-be-revoked"})
    with pytest.raises(Closed) as caught:
        ann.receive()
    assert caught.value.code == 4001
