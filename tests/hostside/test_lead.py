"""One controller per deployment: who is refused, who is let in, and that nobody waits for the dead."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.hostside.driver import WAIT_S, Host, Link, Message, sabotaged, sockets_named, stat, wait_for

OTHER = {"controller": "box:2", "id": "two", "user": "eve", "since": "then", "epoch": 2}
FIRST = {"controller": "box:1", "id": "one", "user": "adam", "since": "before", "epoch": 9}


def asks(host: Host, **said: Any) -> Link:
    """A link whose hello is on its way."""
    link = host.link(hello=False)
    link.send(op="hello", **{"v": 1, "deployment": host.deployment, **said})
    return link


def answer(link: Link, living: Link | None = None) -> Message:
    """What its hello is answered. `living`: the link of whoever leads; its controller does what it is asked, and goes on."""
    if living is not None:
        living.until(lambda m: m.get("ask") == "ping")
    end = time.monotonic() + WAIT_S
    while True:
        if living is not None:
            living.send(op="ping", n=0)  # the first may have been heard before the visit
        message = link.next(0.1 if living is not None else WAIT_S)
        if message is not None and ("hello" in message or "refused" in message):
            return message
        assert time.monotonic() < end, "no answer"


def test_who_comes_second_is_refused_and_told_who_leads(host: Host) -> None:
    first = host.link(**FIRST)
    second = asks(host, **OTHER)
    refused = answer(second, first)
    assert refused["refused"] == f"deployment {host.deployment} is run by controller box:1 (user adam, since before)"
    told = {"deployment": host.deployment, "controller": "box:1", "id": "one", "user": "adam", "since": "before"}
    assert told.items() <= refused["holder"].items()
    assert second.ended() == 0
    first.started("r1")
    first.stopped("r1")


def test_a_line_it_had_heard_before_is_no_sign_of_life(host: Host, tmp_path: Path) -> None:
    impatient = sabotaged(tmp_path, link=("SILENCE_S = 10.0", "SILENCE_S = 3.0"))
    begun = time.monotonic()
    host.link(impatient, **FIRST)  # and not a word more
    second = host.link(impatient, **OTHER)
    assert "hello" in second.said[-1]
    assert time.monotonic() - begun > 2.9
    second.started("r1")
    second.stopped("r1")


def test_a_dead_controller_is_not_waited_for(host: Host) -> None:
    first = host.link(**FIRST)
    first.hang_up()
    assert "hello" in host.link(**OTHER).said[-1]


def test_to_take_over_is_a_word(host: Host) -> None:
    first = host.link(**FIRST)
    first.started("r1")
    second = host.link(**OTHER, take_over=True)
    assert second.runs["r1"]["phase"] == "running"
    put_out = answer(first)
    assert put_out["holder"]["controller"] == "box:2"
    assert first.ended() == 0
    third = asks(host, **FIRST)
    assert answer(third, second)["holder"]["controller"] == "box:2"
    second.stopped("r1")


def test_a_new_connection_puts_the_old_one_out(host: Host) -> None:
    old = host.link(**FIRST)
    new = host.link(**{**FIRST, "epoch": 10})
    assert "hello" in new.said[-1]
    assert answer(old)["holder"]["id"] == "one"
    late = host.link(**FIRST)
    assert "refused" in late.said[-1]
    new.started("r1")
    new.stopped("r1")


def record(host: Host) -> Path:
    """Where a host keeps who leads."""
    return host.base / "runs" / host.deployment / ".controller"


def test_a_hung_link_goes_and_what_it_started_stays(host: Host) -> None:
    old = host.link(**FIRST)
    pid = old.started("r1")["pid"]
    old.kill(signal.SIGSTOP)
    known = json.loads(record(host).read_text())
    bystander = {**known["links"][0], "pid": host.run("sleep", "1000")}  # has the pid of a link, and is none
    record(host).write_text(json.dumps({**known, "links": [bystander, *known["links"]]}))
    other = host.link(**{**FIRST, "epoch": 10})
    other.kill(signal.SIGSTOP)  # it has passed by, and has no claim yet
    new = host.link(**{**FIRST, "epoch": 11})
    assert new.runs["r1"]["pid"] == pid
    assert other.ended() == -signal.SIGKILL
    assert old.ended() == -signal.SIGKILL
    assert stat(bystander["pid"])
    os.kill(bystander["pid"], signal.SIGKILL)
    assert (new.runs["r1"]["phase"], new.runs["r1"]["notes"]) == ("running", [])
    wait_for(lambda: sockets_named(f":{host.deployment}"), "the claim of the new one")
    other = asks(host, **OTHER)
    assert answer(other, new)["holder"]["id"] == "one"
    new.stopped("r1")


def test_a_hung_link_that_cannot_be_named_is_passed_by_and_can_change_nothing(host: Host) -> None:
    """Its pid on record may be somebody else's by now."""
    old = host.link(**FIRST)
    known = json.loads(record(host).read_text())
    record(host).write_text(json.dumps({**known, "links": [{**known["links"][0], "start": 0}]}))
    old.kill(signal.SIGSTOP)
    new = host.link(**{**FIRST, "epoch": 10})
    assert "hello" in new.said[-1]
    old.start("r1")
    old.kill(signal.SIGCONT)
    assert "refused" in answer(old)
    assert old.ended() == 0
    assert not host.run_dir("w-0", "r1").exists()
    wait_for(lambda: sockets_named(f":{host.deployment}"), "the claim of the new one")
    other = asks(host, **OTHER)
    assert answer(other, new)["holder"]["id"] == "one"


def test_an_onlooker_neither_leads_nor_is_refused(host: Host) -> None:
    onlooker = host.link(**OTHER, read_only=True)
    first = host.link(**FIRST)
    assert onlooker.said[-1]["hello"]["led_by"] is None
    assert "hello" in first.said[-1]
    second = asks(host, **OTHER, read_only=True)
    assert answer(second, first)["hello"]["led_by"]["controller"] == "box:1"
    assert host.link(**OTHER, read_only=True).said[-1]["hello"]["led_by"] is None, "it showed no life"
    onlooker.start("r1")
    assert "refused" in answer(onlooker)
    assert not host.run_dir("w-0", "r1").exists()


def test_two_hosts_may_be_one_machine(host: Host) -> None:
    """One controller reaches two directories of one machine, on connections of different age."""
    first = host.link(**FIRST)
    elsewhere = Host(deployment=host.deployment)
    try:
        assert "hello" in elsewhere.link(**{**FIRST, "epoch": 12}).said[-1]
        first.started("r1")
        first.stopped("r1")
    finally:
        elsewhere.close()


def test_a_keeper_does_not_hold_it(host: Host) -> None:
    first = host.link(**FIRST)
    pid = first.started("r1")["pid"]
    first.kill()
    first.ended()
    second = host.link(**OTHER)
    assert second.runs["r1"]["pid"] == pid
    os.kill(pid, 0)
    second.stopped("r1")
    wait_for(lambda: not host.leftovers())
