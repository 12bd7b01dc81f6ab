"""What a host's GPUs are is news for the reader, and nothing else."""

from __future__ import annotations

from supervisor.core.facts import GpuSeen, GpusSeen, HostFound, HostLost, Phase, Planned, RunGpu, RunState, Told
from supervisor.core.fleet import step_fleet
from supervisor.core.known import Fleet
from supervisor.core.snapshot import Status
from supervisor.core.status import status
from supervisor.core.wanted import Wanted

CARDS = (GpuSeen(0, "GPU-a", "H200", 143771, 615), GpuSeen(1, "GPU-b", "H200", 143771, 70615, holders=("pid 7 (x)",)))
BLIND = GpusSeen("gpu01", (), "NVML does not answer within 5 s")


def found() -> Fleet:
    want = Wanted("qwen-0", "qwen", "mocker", "gpu01", "h")
    fleet, _ = step_fleet(Fleet(), Planned({"qwen-0": want}), 0.0)
    fleet, _ = step_fleet(fleet, HostFound("gpu01", ()), 1.0)
    return fleet


def seen(fleet: Fleet) -> Status:
    return status(fleet, deployment="lab", endpoints=(), controller=None, now_s=9.0)


def test_a_look_is_no_reason_to_act() -> None:
    before = found()
    for fact in (GpusSeen("gpu01", CARDS), BLIND, GpusSeen("elsewhere", CARDS)):
        after, actions = step_fleet(before, fact, 2.0)
        assert actions == ()
        assert (after.processes, after.hosts.keys()) == (before.processes, before.hosts.keys())


def test_what_nvml_tells_is_shown_with_its_age() -> None:
    fleet, _ = step_fleet(found(), GpusSeen("gpu01", CARDS), 3.0)
    (host,) = seen(fleet)["hosts"]
    assert [(gpu["index"], gpu["uuid"], gpu["used_mib"], gpu["holders"]) for gpu in host["gpus"]] == [
        (0, "GPU-a", 615, []), (1, "GPU-b", 70615, ["pid 7 (x)"]),
    ]  # fmt: skip
    assert (host["gpus_asof"], "reason" in host) == (3.0, False)


def test_an_nvml_that_hangs_is_one_line_about_its_host() -> None:
    fleet, _ = step_fleet(found(), GpusSeen("gpu01", CARDS), 3.0)
    fleet, _ = step_fleet(fleet, BLIND, 4.0)
    (host,) = seen(fleet)["hosts"]
    assert (host["state"], host["reason"]) == ("up", "its GPUs cannot be seen: NVML does not answer within 5 s")
    assert len(host["gpus"]) == 2, "what was known of them stands"
    fleet, _ = step_fleet(fleet, GpusSeen("gpu01", CARDS), 5.0)
    assert "reason" not in seen(fleet)["hosts"][0]


def test_gpus_outlast_a_lost_line() -> None:
    fleet, _ = step_fleet(found(), GpusSeen("gpu01", CARDS), 3.0)
    fleet, _ = step_fleet(fleet, HostLost("gpu01", "silent"), 4.0)
    (host,) = seen(fleet)["hosts"]
    assert (host["state"], host["reason"], len(host["gpus"]), host["gpus_asof"]) == ("unreachable", "silent", 2, 3.0)
    assert step_fleet(fleet, HostFound("gpu01", ()), 5.0)[0].hosts["gpu01"].gpus == CARDS


def test_a_run_says_which_are_its_own_and_what_is_proven() -> None:
    fleet = found()
    run = fleet.processes["qwen-0"].run
    state = RunState(run, "qwen-0", Phase.RUNNING, gpus=(RunGpu(1, "GPU-b", "proved"),))
    told, _ = step_fleet(fleet, Told("gpu01", state), 4.0)
    assert seen(told)["processes"][0]["gpus"] == [{"index": 1, "uuid": "GPU-b", "proof": "proved"}]
