"""The inbox as a third party's client meets it: order, two devices, and kill -9 in the middle of delivery."""

import json
import signal
import urllib.request

import pytest

from antiphon_client import Closed, Refused


def notify_from_above(server, user, **item):
    request = urllib.request.Request(
        f"{server.control}admin/users/{user}/notify", json.dumps(item).encode(), method="POST",
        headers={"Authorization": "Bearer python-tests-admin", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["item"]


def items(client, count):
    """The next items, in the order in which they come; an event has at most 50."""
    found = []
    while len(found) < count:
        event = client.event("inbox:item")
        assert 1 <= len(event["items"]) <= 50
        found += event["items"]
    return found


def test_the_most_urgent_and_oldest_comes_first(server):
    order = ["low", "normal", "critical", "low", "critical", "normal"]
    sent = [notify_from_above(server, "ina", name=f"n{number}", data={"n": number}, priority=priority)
            for number, priority in enumerate(order)]
    assert sent == sorted(sent)
    ina = server.client("ina")
    assert ina.hello["inbox"] == 6
    got = items(ina, 6)
    assert [item["name"] for item in got] == ["n2", "n4", "n1", "n5", "n0", "n3"]
    assert [item["data"]["n"] for item in got] == [2, 4, 1, 5, 0, 3]
    assert all(item["attempt"] == 1 and item["expires_ts"] > item["ts"] for item in got)
    page = ina.ask("inbox:list", limit=4)
    assert [item["item"] for item in page["items"]] == sent[:4] and page["next"] == sent[3]
    assert [item["item"] for item in ina.ask("inbox:list", after=page["next"])["items"]] == sent[4:]
    assert ina.ask("inbox:ack", items=sent)["acked"] == 6
    assert server.client("ina").hello["inbox"] == 0


def test_an_ack_on_one_device_cancels_on_the_other(server):
    ann, phone, tablet = server.client("ann"), server.client("ivo", "phone-1"), server.client("ivo", "tablet-1")
    with pytest.raises(Refused) as caught:
        ann.ask("notify", user="ivo", name="poke", data=1)
    assert caught.value.code == 103
    ann.listen("room:join", "inbox-lounge")
    phone.listen("room:join", "inbox-lounge")
    item = ann.ask("notify", user="ivo", name="poke", data={"n": [1, None]}, priority="critical")["item"]
    for device in (phone, tablet):
        [got] = items(device, 1)
        assert (got["item"], got["from"], got["data"], got["priority"]) == (item, "ann", {"n": [1, None]}, "critical")
    assert tablet.ask("inbox:ack", items=[item])["acked"] == 1
    assert phone.event("inbox:acked")["items"] == [item]
    tablet.nothing("inbox:acked", 0.1)
    # Not again: a retry would come after a second.
    phone.events.clear()
    phone.nothing("inbox:item", 1.6)
    assert phone.ask("inbox:ack", items=[item])["acked"] == 0


def test_what_is_not_acknowledged_comes_again(server):
    item = notify_from_above(server, "ida", name="again", data=None)
    ida = server.client("ida")
    attempts = [items(ida, 1)[0] for _ in range(2)]
    assert [(got["item"], got["attempt"]) for got in attempts] == [(item, 1), (item, 2)]
    ida.ask("inbox:ack", items=[item])


def test_kill_9_in_the_middle_of_delivery(start):
    server = start()
    count = 300
    sent = {notify_from_above(server, "ike", name="n", data=number): number for number in range(count)}
    acked, asked = set(), set()
    for round in range(3):
        ike = server.client("ike", f"phone-{round}")
        waits = ike.hello["inbox"]
        assert count - len(asked) <= waits <= count - len(acked)
        # The power goes before everything has been read, and before every ack has been answered.
        said = []
        for event in [items(ike, min(50, waits))]:
            for item in event:
                assert item["data"] == sent[item["item"]]
                assert item["item"] not in acked, "acknowledged, and it came again"
            ids = [item["item"] for item in event]
            for some in (ids[:20], ids[20:40]):
                asked.update(some)
                said.append((some, ike.say("inbox:ack", items=some)))
        some, identifier = said[0]
        ike.reply(identifier)
        acked.update(some)
        server.stop(signal.SIGKILL)
        with pytest.raises(Closed):
            while True:
                ike.receive()
        server.start()
    ike = server.client("ike", "tablet")
    rest = {item["item"] for item in items(ike, ike.hello["inbox"])}
    assert not rest & acked, "nothing acknowledged comes again"
    assert rest | asked == set(sent), "nothing is lost that nobody asked to be taken away"
    left = sorted(rest)
    assert sum(ike.ask("inbox:ack", items=left[at:at + 100])["acked"] for at in range(0, len(left), 100)) == len(left)
    assert server.client("ike").hello["inbox"] == 0
