"""What befell a run, numbered on its host: by its keeper, by its heir, on a full disk, after a reboot."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from supervisor.hostside import events
from supervisor.hostside.events import Events
from tests.hostside.driver import PY, TERM_DEAF, Host, Message, wait_for


def told(state: Message) -> list[tuple[int, str]]:
    return [(event["n"], event["what"]) for event in state["events"]]


def numbers(found: Events) -> list[int]:
    return [event["n"] for event in found.newest]


def test_the_life_of_a_run_in_order(host: Host) -> None:
    link = host.link()
    assert told(link.started()) == [(1, "born")]
    gone = link.stopped(term_s=5)
    story = [(1, "born"), (2, "stop"), (3, "exit"), (4, "stop"), (5, "gone")]
    assert told(gone) == story
    texts = [event["text"] for event in gone["events"]]
    assert texts == [f"pid {gone['pid']}", "term_leader", "signal 15, asked", "term_rest", ""]
    assert told(host.link(epoch=2).runs["r1"]) == story, "its records say the same"


def test_a_start_that_was_refused_has_a_story_too(host: Host) -> None:
    link = host.link()
    link.start("r1", ["/no/such/program"])
    assert told(link.gone()) == [(1, "born"), (2, "exit"), (3, "gone")]
    assert "/no/such/program" in link.runs["r1"]["events"][1]["text"]


@pytest.mark.parametrize("dies", ["keeper", "both"])
def test_an_heir_goes_on_counting(host: Host, dies: str) -> None:
    link = host.link()
    link.started("r1", [*PY, TERM_DEAF])
    pump = host.helper("pump", "r1")
    for pid in [host.helper("keeper", "r1"), *([pump] if dies == "both" else [])]:
        os.kill(pid, signal.SIGKILL)
    heir = link.state("r1", lambda s: s["heir"] and len(s["events"]) > 1)
    assert told(heir)[:2] == [(1, "born"), (2, "note")]
    gone = told(link.stopped())
    assert [n for n, _ in gone] == list(range(1, len(gone) + 1))
    assert "exit" in dict(map(reversed, gone))
    assert gone[-1][1] == "gone"


def test_who_was_away_is_told_all_of_it(host: Host) -> None:
    link = host.link()
    link.started()
    link.hang_up()
    link.ended()
    os.kill(host.helper("pump", "r1"), signal.SIGKILL)
    wait_for(
        lambda: len(host.helpers("pump", "r1")) == 1 and events.read(str(host.run_dir("w-0", "r1") / "events"))[-1]["n"] == 2
    )
    again = host.link(epoch=2)
    assert told(again.runs["r1"]) == [(1, "born"), (2, "note")]
    again.stopped()


# --- the file -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events"


def test_only_the_newest_are_told_and_the_gap_shows(file: Path) -> None:
    ours = Events(str(file), False)
    for _ in range(100):
        ours.add("note", "x" * 1000)
    assert numbers(ours) == list(range(61, 101))
    assert numbers(Events(str(file), False)) == numbers(ours)
    for _ in range(1000):
        ours.add("note", "x" * 1000)
    assert file.stat().st_size <= events.MOST_BYTES
    assert numbers(Events(str(file), False)) == numbers(ours) == list(range(1061, 1101))


@pytest.mark.parametrize("damage", [b'{"n": 3, "at": 1, "wh', b"\0" * 4096, b"[]\n5\n{}\n"])
def test_what_a_power_cut_left_of_a_line_is_left_out(file: Path, damage: bytes) -> None:
    Events(str(file), False).add("born")
    with file.open("ab") as broken:
        broken.write(damage)
    assert numbers(Events(str(file), False)) == [1]


def test_after_a_reboot_no_number_can_have_been_told_before(file: Path) -> None:
    """Of the last seconds before a power cut nothing may be on the disk, and all of it may have been told."""
    ours = Events(str(file), False)
    ours.add("born")
    on_disk = file.read_bytes()
    for _ in range(5):
        ours.add("note")
    file.write_bytes(on_disk)
    later = Events(str(file), True)
    later.add("gone")
    assert numbers(later) == [1, 1001]


def test_events_wait_for_a_disk_with_room_and_are_not_told_before(file: Path) -> None:
    ours = Events(str(file), False)
    ours.add("born")
    file.rename(file.with_suffix(".away"))
    file.mkdir()  # cannot be written
    ours.add("note", "first")
    ours.add("note", "second")
    assert numbers(ours) == [1], "an heir would give these numbers again"
    file.rmdir()
    file.with_suffix(".away").rename(file)
    ours.add("exit")
    assert [(e["n"], e["text"]) for e in ours.newest] == [(1, ""), (2, "first"), (3, "second"), (4, "")]
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
