"""Stand-ins in a plan: on another host of the model, on GPUs of their own, for as long as the files want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from supervisor.plan.build import Plan
from supervisor.plan.place import Seat
from supervisor.plan.seating import seating
from tests.plan.test_seating import Site, gpus

REPLACE = {"on_lost": "replace", "lost_after": 5.0}
LOST = {"gpu01": "the line broke"}
PENDING = Seat("", (), stands_in="qwen-0")


def site(seats: Mapping[str, Seat] = {"qwen-2": PENDING}, **model: Any) -> Site:
    """Two replicas, of which the one on gpu01 is away."""
    made = Site({**REPLACE, **model})
    made.seats |= {"qwen-0": Seat("gpu01", (0,)), "qwen-1": Seat("gpu02", (0,)), **seats}
    return made


def seated(made: Site, plan: Plan, **seen: Any) -> Plan:
    """As placing does it: whom it stands in for stays with the seat."""
    found = seating(plan, seen, LOST)
    made.seats |= {name: Seat(s.host, s.gpus, s.why, plan.wanted[name].replaces) for name, s in found.seats.items()}
    made.refused = dict(found.refused)
    return made.plan()


def test_it_waits_for_a_place_and_gets_free_gpus_of_another_host() -> None:
    made = site()
    waiting = made.plan().wanted["qwen-2"]
    assert (waiting.host, waiting.replaces, waiting.replica, waiting.lost_after_s) == ("", "qwen-0", 2, 5.0)
    assert made.plan().unplaced["qwen-2"].ask.hosts == ("gpu02",)
    plan = seated(made, made.plan(), gpu02=gpus(4))
    found = plan.processes["qwen-2"]
    assert (found.wanted.host, found.wanted.gpus) == ("gpu02", (1,))
    assert found.why == "in place of qwen-0, beside 1 of qwen, 3 of 4 GPUs free"
    assert {name: (w.host, w.gpus) for name, w in plan.wanted.items() if not w.replaces} == {
        name: (w.host, w.gpus) for name, w in site({}).plan().wanted.items()
    }, "nobody else moves"


def test_where_there_is_no_room_it_says_so() -> None:
    made = site()
    why = seated(made, made.plan(), gpu02=gpus(1)).wanted["qwen-2"].unplaced
    assert why == "needs 1 free GPU of one host; nearest is gpu02 with 0 of 1 free (GPU 0: given to qwen-1)"


@pytest.mark.parametrize("model", [{"engine": "mocker"}, {"gpus": {}}])
def test_what_needs_no_gpu_needs_a_host_that_answers(model: dict[str, Any]) -> None:
    made = site(**model)
    assert seated(made, made.plan()).wanted["qwen-2"].unplaced == "needs a host, and none of gpu02 answers"
    found = seated(made, made.plan(), gpu02=()).processes["qwen-2"]
    assert (found.wanted.host, found.wanted.gpus, found.why) == ("gpu02", (), "in place of qwen-0, beside 1 of qwen")


def test_of_several_hosts_the_one_with_fewest_replicas() -> None:
    made = Site({**REPLACE, "engine": "mocker", "replicas": 4}, gpu03={"cluster_address": "10.1.0.13", "python": "/p"})
    made.seats["qwen-4"] = Seat("", (), stands_in="qwen-1")
    found = seating(made.plan(), {"gpu01": (), "gpu03": ()}, {"gpu02": "lost"}).seats["qwen-4"]
    assert found.host == "gpu03", "gpu01 has two"


@pytest.mark.parametrize("model", [{"on_lost": "wait"}, {"replicas": 0}, {"name": "other"}])
def test_it_goes_with_the_key_with_whom_it_stands_in_for_and_with_its_service(model: dict[str, Any]) -> None:
    assert "qwen-2" not in site(**model).plan().wanted


def test_a_file_that_grows_over_its_number_makes_it_an_ordinary_one_in_its_place() -> None:
    grown = site({"qwen-2": Seat("gpu02", (1,), "", "qwen-0")}, replicas=3).plan().wanted["qwen-2"]
    assert (grown.replaces, grown.host, grown.gpus) == ("", "gpu02", (1,))


def test_how_long_a_host_may_be_away_restarts_nobody() -> None:
    hashes = {
        tuple(w.launch_hash for w in site({}, **m).plan().wanted.values()) for m in ({}, {"lost_after": 9}, {"on_lost": "wait"})
    }
    assert len(hashes) == 1
