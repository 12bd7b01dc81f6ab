"""From files and what hosts tell of their GPUs to a plan: who is placed, who is not and why, and who stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.facts import GpuSeen
from supervisor.core.wanted import Wanted
from supervisor.errors import FileError
from supervisor.plan.build import WAITS, Plan, build
from supervisor.plan.diff import Change, diff
from supervisor.plan.place import Seat
from supervisor.plan.seating import seating
from supervisor.spec import parse_deployment, parse_inventory
from tests.plan.files import deployment, hosts, text


def gpus(count: int, **changes: GpuSeen) -> tuple[GpuSeen, ...]:
    """`gpu1=GpuSeen(…)` replaces one."""
    return tuple(changes.get(f"gpu{n}", GpuSeen(n, f"GPU-{n}", total_mib=1000, used_mib=10)) for n in range(count))


class Site:
    """Two files, and the seats given so far."""

    def __init__(self, model: Mapping[str, Any], **inventory: Any) -> None:
        self.model, self.known = dict(model), parse_inventory(text(hosts(**inventory)), Path("/nowhere/hosts.yaml"))
        self.seats: dict[str, Seat] = {}
        self.refused: dict[str, str] = {}

    def plan(self) -> Plan:
        deployed = parse_deployment(text(deployment({"engine": "vllm", "replicas": 2} | self.model)), self.known)
        return build(deployed, self.known, self.seats, self.refused)

    def place(self, silent: Mapping[str, str] | None = None, **seen: Sequence[GpuSeen]) -> list[str]:
        """`qwen-0 gpu01 [0]` for each worker of the plan afterwards, `qwen-1 -` for who has no place."""
        found = seating(self.plan(), seen, silent or {})
        self.seats |= found.seats
        self.refused = dict(found.refused)
        workers = [w for w in self.plan().wanted.values() if w.service == "qwen"]
        return [f"{w.name} {w.host} {list(w.gpus)}" if w.host else f"{w.name} -" for w in workers]


def test_before_anybody_told_they_wait() -> None:
    plan = Site({}).plan()
    assert list(plan.unplaced) == ["qwen-0", "qwen-1"]
    assert {(w.host, w.unplaced) for w in plan.wanted.values() if w.service == "qwen"} == {("", WAITS)}
    assert "qwen-0" not in plan.processes


def test_placed_spread_and_kept_when_more_are_wanted() -> None:
    site = Site({})
    assert site.place(gpu01=gpus(2), gpu02=gpus(2)) == ["qwen-0 gpu01 [0]", "qwen-1 gpu02 [0]"]
    before = site.plan().wanted
    site.model["replicas"] = 4
    assert site.place(gpu01=gpus(2), gpu02=gpus(2))[2:] == ["qwen-2 gpu01 [1]", "qwen-3 gpu02 [1]"]
    after = site.plan().wanted
    assert {name: after[name] for name in before} == before
    assert diff(before, after) == (Change("qwen-2", "start", "new in the file"), Change("qwen-3", "start", "new in the file"))


@pytest.mark.parametrize(
    ("gpu0", "why"),
    [
        (GpuSeen(0, "GPU-0", error="it fell off the bus"), "it fell off the bus"),
        (GpuSeen(0, "GPU-0", mig=True), "split by MIG; its slices are given by hand (gpus)"),
        (GpuSeen(0, "GPU-0", strangers=("pid 7 (python train.py)",)), "held by pid 7 (python train.py)"),
        (GpuSeen(0, "GPU-0", claim={"deployment": "other", "process": "x-0"}), "claimed by x-0 of other"),
        (GpuSeen(0, "GPU-0", claim={"deployment": "lab", "process": "gone-0"}), "claimed by gone-0 of lab"),
        (GpuSeen(0, "GPU-0", total_mib=1000, used_mib=81), "81 MiB in use by nobody"),
    ],
)
def test_a_gpu_that_is_not_free_is_passed_by_and_named(gpu0: GpuSeen, why: str) -> None:
    site = Site({"hosts": ["gpu01"]})
    assert site.place(gpu01=gpus(2, gpu0=gpu0)) == ["qwen-0 gpu01 [1]", "qwen-1 -"]
    assert site.plan().wanted["qwen-1"].unplaced == (
        f"needs 1 free GPU of one host; nearest is gpu01 with 0 of 2 free (GPU 0: {why}; GPU 1: given to qwen-0)"
    )


def test_slices_are_not_given_away() -> None:
    site = Site({"replicas": 1, "hosts": ["gpu01"]})
    assert site.place(gpu01=(GpuSeen(0, "GPU-0", mig=True), GpuSeen(0, "MIG-1"))) == ["qwen-0 -"]


def test_who_is_to_move_does_not_stand_in_its_own_way() -> None:
    """Grown from one GPU to two: the old run still claims GPU 0, and gives it up first."""
    site = Site({"replicas": 1, "hosts": ["gpu01"]})
    assert site.place(gpu01=gpus(2)) == ["qwen-0 gpu01 [0]"]
    site.model["args"] = {"tensor_parallel_size": 2}
    own = GpuSeen(0, "GPU-0", claim={"deployment": "lab", "process": "qwen-0"}, holders=("pid 9",), total_mib=9, used_mib=9)
    assert site.place(gpu01=gpus(2, gpu0=own)) == ["qwen-0 gpu01 [0, 1]"]


def test_what_is_cordoned_or_has_just_turned_somebody_away_is_passed_by() -> None:
    plan = Site({"hosts": ["gpu01"], "replicas": 1}).plan()
    found = seating(plan, {"gpu01": gpus(2)}, {}, {("gpu01", 0): "cordoned"})
    assert found.seats == {"qwen-0": Seat("gpu01", (1,))}
    none_left = seating(plan, {"gpu01": gpus(1)}, {}, {("gpu01", 0): "cordoned"})
    assert none_left.refused["qwen-0"].endswith("(GPU 0: cordoned)")


def test_only_what_a_host_lends() -> None:
    lent = {"gpu01": {"gpus": [1]}, "gpu02": {"gpus": ["GPU-3"]}}
    assert Site({}, **lent).place(gpu01=gpus(4), gpu02=gpus(4)) == ["qwen-0 gpu01 [1]", "qwen-1 gpu02 [3]"]


def test_a_seat_that_is_not_lent_any_more_is_given_up() -> None:
    site = Site({"replicas": 1, "hosts": ["gpu01"]})
    site.seats["qwen-0"] = Seat("gpu01", (0,))
    assert "qwen-0" in site.plan().processes
    taken_back = Site({"replicas": 1, "hosts": ["gpu01"]}, gpu01={"gpus": [1]})
    taken_back.seats = site.seats
    assert taken_back.place(gpu01=gpus(2)) == ["qwen-0 gpu01 [1]"]


def test_by_hand_what_is_not_lent_is_refused_by_name() -> None:
    with pytest.raises(FileError, match="GPU 0 of gpu01 is not lent to noray"):
        Site({"replicas": 1, "gpus": {"gpu01": [0]}}, gpu01={"gpus": [1, 2]}).plan()


def test_gpus_by_hand_are_not_given_to_others() -> None:
    known = parse_inventory(text(hosts()), Path("/nowhere/hosts.yaml"))
    by_hand = {"name": "p", "model": "/m", "engine": "vllm", "gpus": {"gpu01": [0]}}
    free = {"name": "q", "model": "/m", "engine": "vllm", "hosts": ["gpu01"]}
    deployed = parse_deployment(text({"name": "lab", "models": [free, by_hand]}), known)
    found = seating(build(deployed, known), {"gpu01": gpus(2)}, {})
    assert found.seats == {"q-0": Seat("gpu01", (1,))}


def test_a_mocker_gets_gpus_only_where_its_file_says_how_many() -> None:
    assert not Site({"engine": "mocker"}).plan().unplaced
    placed = Site({"engine": "mocker", "args": {"tensor_parallel_size": 2}, "replicas": 1})
    assert placed.place(gpu01=gpus(2), gpu02=()) == ["qwen-0 gpu01 [0, 1]"]


def test_a_cpu_build_of_vllm_needs_none() -> None:
    assert not Site({"gpus": {}}).plan().unplaced


def test_hosts_that_do_not_tell_are_named_beside_the_refusal() -> None:
    site = Site({"replicas": 2})
    assert site.place({"gpu02": "connection refused"}, gpu01=gpus(1)) == ["qwen-0 gpu01 [0]", "qwen-1 -"]
    assert site.plan().wanted["qwen-1"].unplaced.endswith("(GPU 0: given to qwen-0); not known: gpu02: connection refused")
    assert site.place(gpu01=gpus(1), gpu02=gpus(1))[1] == "qwen-1 gpu02 [0]"


def test_labels_choose_hosts() -> None:
    racks = {"gpu01": {"labels": {"rack": "r1"}}, "gpu02": {"labels": {"rack": "r2", "fast": "yes"}}}
    site = Site({"labels": {"rack": "r2"}}, **racks)
    assert site.place(gpu01=gpus(4), gpu02=gpus(4)) == ["qwen-0 gpu02 [0]", "qwen-1 gpu02 [1]"]


def test_an_engine_over_several_hosts_says_how_it_would_be_split() -> None:
    site = Site({"replicas": 1, "args": {"tensor_parallel_size": 4}})
    assert site.place(gpu01=gpus(2), gpu02=gpus(2)) == ["qwen-0 -"]
    assert site.plan().wanted["qwen-0"].unplaced == (
        "needs GPUs of 2 hosts (2 of gpu01 and 2 of gpu02): engines over several hosts are not yet built"
    )


def test_the_difference_says_who_lost_or_found_a_place() -> None:
    def wanted(host: str) -> dict[str, Wanted]:
        return {"q-0": Wanted("q-0", "q", "vllm", host, "h" if host else "", unplaced="" if host else "no room")}

    assert diff(wanted("gpu01"), wanted("")) == (Change("q-0", "stop", "has no place any more: no room"),)
    assert diff(wanted(""), wanted("gpu01")) == (Change("q-0", "start", "has a place now, on gpu01"),)
    assert diff(wanted(""), wanted("")) == ()
