"""Eject: nothing of noray is left on a host, and nothing is removed while anything of anybody's runs there."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostside.driver import Host, marked, sabotaged, wait_for

# Claims and keepers are looked for on the whole machine, where other tests have theirs.
ALONE = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs root, to be alone on a host",
)

CLAIM = """\
import os, socket, sys
os.setuid(int(sys.argv[1]))
sock = socket.socket(socket.AF_UNIX)
sock.bind("\\0noray/" + sys.argv[2])
sock.listen(16)
print("held", flush=True)
while True:
    visitor, _ = sock.accept()
    visitor.send(sys.argv[3].encode())
    visitor.close()
"""


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(inside=ALONE)
    yield made
    made.close()


@pytest.fixture
def eject(host: Host) -> Callable[..., dict[str, Any]]:
    def ask(op: str = "eject") -> dict[str, Any]:
        link = host.link(program="eject", hello=False)
        link.send(op=op)
        answer: dict[str, Any] = link.until(lambda m: "living" in m)
        link.hang_up()
        return answer

    return ask


def left(host: Host) -> list[str]:
    return sorted(str(path) for path in host.root.rglob("*"))


def test_after_everything_stopped_nothing_is_left(host: Host, eject: Callable[..., dict[str, Any]]) -> None:
    link = host.link()
    link.started(argv=["sh", "-c", "mkdir -p closed/in && touch closed/in/file && chmod 0 closed && echo made && sleep 1000"])
    wait_for(lambda: "made" in link.tail("r1"))
    link.stopped()
    (host.base / "bin").mkdir()
    (host.base / "bin" / "noray-0.pyz").write_text("the program itself")
    (host.root / "operators").mkdir()
    (host.base / "data" / "to").symlink_to(host.root / "operators")
    link.hang_up()
    link.ended()
    seen = eject("look")
    assert (seen["base"], seen["living"], seen["deployments"]) == (str(host.base), [], [host.deployment])
    assert seen["bytes"] > 0
    did = eject()
    assert (did["living"], did["left"], did["removed"]) == ([], [], [str(host.base)])
    assert left(host) == [str(host.root / "operators")]
    again = eject()
    assert (again["living"], again["left"], again["removed"]) == ([], [], [])


def test_while_a_run_or_a_controller_is_there_nothing_is_touched(host: Host, eject: Callable[..., dict[str, Any]]) -> None:
    link = host.link()
    link.started("r1", ports={"a": [0, "127.0.0.1", 3]})
    before = left(host)
    did = eject()
    found = {each["what"]: each for each in did["living"]}
    assert len(did["living"]) == 2, "each once, however many claims it has"
    run = {key: found["run"][key] for key in ("deployment", "process", "run", "user", "controller")}
    assert run == {"deployment": host.deployment, "process": "w-0", "run": "r1", "user": "root", "controller": "c1"}
    assert found["run"]["since"]
    assert (found["controller"]["deployment"], found["controller"]["controller"]) == (host.deployment, "c1")
    assert did["removed"] == []
    assert set(left(host)) >= set(before)
    link.hang_up()
    link.ended()
    assert [each["what"] for each in eject()["living"]] == ["run"]
    assert set(left(host)) >= set(before)
    again = host.link()
    again.stopped()
    assert [each["what"] for each in eject()["living"]] == ["controller"]
    assert left(host)


def claimed(name: str, says: str) -> str:
    return shlex.join([sys.executable, "-I", "-S", "-c", CLAIM, str(NOBODY), name, says])


THEIRS = {"deployment": "theirs", "process": "w-0", "run": "r9"}
TITLED = f'exec setpriv --reuid {NOBODY} -- bash -c \'exec -a "noray-keeper w-0@r9 (theirs)" sh -c "echo held; sleep 1000"\''


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (claimed("port-4711", json.dumps({**THEIRS, "user": "bob"})), {**THEIRS, "user": "bob", "what": "run"}),
        (claimed("run-7-theirs-w-0", ""), {"what": "claim", "claim": "run-7-theirs-w-0"}),
        (TITLED, {**THEIRS, "user": "nobody", "what": "run"}),
    ],
    ids=["by its claim", "by a claim that says nothing", "by its keeper's title"],
)
def test_another_users_run_is_as_good_as_ours(
    host: Host, eject: Callable[..., dict[str, Any]], tmp_path: Path, command: str, expected: dict[str, Any]
) -> None:
    (host.base / "runs").mkdir()
    said, mark = tmp_path / "said", f"{host.deployment}mark"
    host.run("sh", "-c", f"exec > {said}; export MARK={mark}; {command}")
    wait_for(lambda: said.exists() and said.read_text() == "held\n")
    (found,) = eject()["living"]
    assert {key: found[key] for key in expected} == expected
    assert (host.base / "runs").is_dir()
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not marked(mark))
    assert eject()["living"] == []
    assert not host.base.exists()


def test_what_nobody_looks_after_is_not_buried_alive(host: Host, eject: Callable[..., dict[str, Any]]) -> None:
    link = host.link()
    link.started(env={"MARK": host.deployment})
    helpers = [host.helper("keeper", "r1"), host.helper("pump", "r1")]
    link.hang_up()
    link.ended()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in helpers:
            os.kill(pid, number)
    orphans = wait_for(lambda: [each for each in eject()["living"] if each["what"] == "orphan"])
    assert (orphans[0]["process"], orphans[0]["run"]) == ("w-0", "r1")
    assert host.run_dir("w-0", "r1").is_dir()
    assert not Path(f"{host.base}.ejected").exists()


def test_what_begins_between_the_look_and_the_removal_is_not_lost(tmp_path: Path) -> None:
    late = ("        place = _put_aside(base)\n", "        place, late = _put_aside(base), claims.hold('run-0-late-w-0')\n")
    host = Host(package=sabotaged(tmp_path, eject=late), inside=ALONE)
    try:
        (host.base / "runs").mkdir()
        link = host.link(program="eject", hello=False)
        link.send(op="eject")
        did = link.until(lambda m: "living" in m)
        assert ([each["claim"] for each in did["living"]], did["removed"]) == (["run-0-late-w-0"], [])
        assert left(host) == [str(host.base), str(host.base / "runs")]
    finally:
        host.close()


def test_the_place_that_noray_chose_goes_too_and_a_neighbours_is_named(tmp_path: Path) -> None:
    places = ('("/var/lib/noray", "/var/tmp/noray-*")', repr((str(tmp_path / "noray-*"),)))
    ours, theirs = tmp_path / "noray-0", tmp_path / "noray-7"
    for place in (ours, theirs):
        place.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    host = Host(root=ours, package=sabotaged(tmp_path, eject=places), inside=ALONE)
    try:
        link = host.link(program="eject", hello=False)
        link.send(op="eject")
        did = link.until(lambda m: "living" in m)
        assert (did["removed"], did["left"]) == ([str(host.base), str(ours)], [])
        assert did["others"] == [{"path": str(theirs), "user": "nobody"}]
        assert (ours.exists(), theirs.exists()) == (False, True)
    finally:
        host.close()


def test_an_eject_that_died_half_way_is_finished_by_the_next(host: Host, eject: Callable[..., dict[str, Any]]) -> None:
    aside = Path(f"{host.base}.ejected")
    (aside / "runs" / "lab").mkdir(parents=True)
    assert eject()["removed"] == [str(host.base)]
    assert left(host) == []
