"""Claims: what one run holds nobody else gets, until its tree is gone, whoever died in between."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

import pytest

from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import PY, TERM_DEAF, Host, Link, marked, sockets_named, stat, wait_for


def visit(name: str) -> dict | None:
    """What a claim's holder says of itself; None if nobody holds it."""
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(5)
        try:
            visitor.connect(f"\0noray/{name}")
        except ConnectionRefusedError:
            return None
        return json.loads(visitor.recv(4096) or b"{}")


def test_never_two_runs_of_one_process(any_host: Host, any_link: Link) -> None:
    any_link.started("r1")
    any_link.start("r2")
    refused = any_link.gone("r2")["exit"]
    assert refused["cause"] == "held"
    assert "is held by w-0" in refused["message"]
    any_link.stopped("r1")
    any_link.started("r3")


@pytest.fixture
def card(gpus: FakeGpus, host: Host) -> str:
    """The UUID of a GPU that no other test knows: claims are of the whole machine."""
    uuid = f"GPU-{host.deployment}"
    gpus.gpu(0, uuid=uuid)
    return uuid


def test_a_gpu_is_held_across_processes_and_deployments(gpus: FakeGpus, host: Host, card: str) -> None:
    gpus.gpu(1, uuid=f"{card}-1")
    gpu = card
    mine, theirs = host.link(), host.link(deployment=host.deployment + "b", controller="c2")
    mine.started("r1", gpus=[1, gpu])
    theirs.start("r2", process="other", gpus=[gpu])
    message = theirs.gone("r2")["exit"]["message"]
    assert f"gpu-{gpu} is held by w-0 of deployment {host.deployment} (user " in message
    assert "run r1, since 20" in message
    assert "started by controller c1" in message
    mine.stopped("r1")
    theirs.started("r3", process="other", gpus=[gpu])
    theirs.stopped("r3")


def test_a_visitor_is_told_the_holder(gpus: FakeGpus, host: Host, link: Link, card: str) -> None:
    gpu = f"gpu-{card}"
    link.started("r1", gpus=[gpu[4:]])
    for _ in range(3):
        told = visit(gpu)
        assert told is not None
        assert (told["deployment"], told["process"], told["run"], told["controller"]) == (host.deployment, "w-0", "r1", "c1")
        assert set(told) == {"deployment", "process", "run", "user", "controller", "since"}
    link.stopped()
    assert visit(gpu) is None


def test_claims_fall_only_after_the_tree_is_gone(gpus: FakeGpus, host: Host, link: Link, card: str) -> None:
    gpu = f"gpu-{card}"
    state = link.started(argv=["sh", "-c", f'{sys.executable} -I -S -c "{TERM_DEAF}" & exec sleep 1000'], gpus=[gpu[4:]])
    wait_for(lambda: "deaf" in link.tail("r1"))
    os.kill(state["pid"], signal.SIGKILL)
    assert link.state("r1", lambda s: s["phase"] == "ended")["stop"]["step"] == "term_rest"
    assert visit(gpu)  # its child is still there
    link.gone()
    assert visit(gpu) is None
    host.assert_nothing_left()


def test_the_heir_holds_them_still(gpus: FakeGpus, host: Host, link: Link, card: str) -> None:
    gpu = f"gpu-{card}"
    link.started("r1", gpus=[gpu[4:]])
    os.kill(host.helper("keeper", "r1"), signal.SIGKILL)
    link.start("r2", gpus=[gpu[4:]])
    assert link.gone("r2")["exit"]["cause"] == "held"
    host.helper("heir", "r1")
    told = wait_for(lambda: visit(gpu))
    assert told["run"] == "r1"
    link.stopped("r1")
    assert visit(gpu) is None


def test_what_outlived_its_keepers_is_not_given_away(gpus: FakeGpus, host: Host, card: str) -> None:
    """Keeper and pump are dead, no link is there, the worker lives: its claims have fallen, but its records speak."""
    gpu, mark = card, host.deployment + "mark"
    first = host.link()
    pid = first.started("r1", gpus=[gpu], env={"MARK": mark})["pid"]
    helpers = [host.helper("keeper", "r1"), host.helper("pump", "r1")]
    first.kill()
    first.ended()
    for helper in helpers:
        os.kill(helper, signal.SIGSTOP)
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)
    wait_for(lambda: not sockets_named(gpu))
    # A deployment of its own, so that its link does not adopt ours.
    other = host.link(deployment=host.deployment + "b")
    other.start("r2", process="other", gpus=[gpu], env={"MARK": mark})
    refused = other.gone("r2")["exit"]
    assert refused["cause"] == "held"
    assert f"gpu-{gpu} is held by run r1, whose keeper died" in refused["message"]
    assert marked(mark) == [pid]
    again = host.link()
    again.stopped("r1")
    other.started("r3", process="other", gpus=[gpu])
    other.stopped("r3")
    host.assert_nothing_left()


def test_twenty_starts_of_one_gpu_from_four_links(gpus: FakeGpus, host: Host, card: str) -> None:
    gpu, mark = card, host.deployment + "mark"
    links = [host.link(deployment=f"{host.deployment}{n}") for n in range(4)]
    runs = [(links[n % 4], f"r{n}") for n in range(20)]
    for link, run in runs:
        link.start(run, process=f"w-{run}", gpus=[gpu], env={"MARK": mark})
    states = [link.state(run, lambda s: s["phase"] in ("running", "gone")) for link, run in runs]
    running = [state for state in states if state["phase"] == "running"]
    assert len(running) == 1
    assert marked(mark) == [running[0]["pid"]]
    assert {state["exit"]["cause"] for state in states if state["phase"] == "gone"} == {"held"}


def test_a_name_longer_than_a_socket_address(link: Link) -> None:
    process = "p" * 120
    link.started("r1", process=process)
    link.start("r2", process=process)
    assert link.gone("r2")["exit"]["cause"] == "held"
    link.stopped("r1")


def test_the_leader_has_none_of_it(gpus: FakeGpus, host: Host, link: Link, card: str) -> None:
    state = link.started(gpus=[card])
    assert not [fd for fd in os.listdir(f"/proc/{state['pid']}/fd") if "socket" in os.readlink(f"/proc/{state['pid']}/fd/{fd}")]
    assert stat(state["pid"])
    assert PY
