"""Histories of several processes: order, adoption, silence, changed plans."""

from __future__ import annotations

import pytest

from supervisor.core.actions import Spawn, Stop, Unwatch, Watch
from supervisor.core.facts import HostFound, Logout, LogoutTold, Phase, Probed, Told
from supervisor.core.fleet import SURPLUS_DRAIN_S, SURPLUS_TERM_S
from supervisor.core.ids import run_id, run_ms
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.core.snapshot import HostStatus
from supervisor.core.status import status
from tests.core.world import World, asks, exited, run_state, spawns, stops, up, wanted

FRONT = wanted("frontend-0", stop_rank=0, drain_s=0.0, term_s=60.0)
WORKER_0 = wanted("qwen-0", stop_rank=1)
WORKER_1 = wanted("qwen-1", stop_rank=1, host="gpu02")
ETCD = wanted("etcd-0", stop_rank=2, drain_s=0.0, term_s=10.0)
ALL = (ETCD, FRONT, WORKER_0, WORKER_1)


# --- stopping ------------------------------------------------------------------------------------------------------------


def test_each_rank_stops_only_when_the_one_before_is_at_rest() -> None:
    world = up(*ALL)
    assert stops(world.stop()) == [(world["frontend-0"].run, 60.0)]
    assert not stops(world.told(Phase.ENDED, "frontend-0", exit=exited(0, asked=True)))
    workers = world.told(Phase.GONE, "frontend-0", exit=exited(0, asked=True))
    assert stops(workers) == [(world["qwen-0"].run, 90.0), (world["qwen-1"].run, 90.0)]
    assert not stops(world.ends(process="qwen-1"))
    assert stops(world.ends(process="qwen-0")) == [(world["etcd-0"].run, 10.0)]
    assert not world.fleet.stopped
    assert not asks(world.ends(process="etcd-0"))
    assert world.fleet.stopped
    assert set(world.states.values()) == {"stopped"}


def test_a_second_request_skips_the_drain_now_and_later() -> None:
    world = up(*ALL)
    world.stop()
    assert stops(world.stop(skip_drain=True)) == [(world["frontend-0"].run, 0.0)]
    later = world.ends(process="frontend-0")
    assert stops(later) == [(world["qwen-0"].run, 0.0), (world["qwen-1"].run, 0.0)]
    world.ends(process="qwen-0")
    assert stops(world.ends(process="qwen-1")) == [(world["etcd-0"].run, 0.0)]


def test_a_third_request_asks_nothing_more() -> None:
    world = up(*ALL)
    world.stop()
    world.stop(skip_drain=True)
    assert world.stop(skip_drain=True) == ()


def test_what_crashes_while_stopping_is_not_started_again() -> None:
    world = up(*ALL)
    world.stop()
    world.ends(exited(-1), process="qwen-0")
    assert world.states["qwen-0"] == "stopped"
    assert not spawns(world.did)


def test_what_waits_for_its_next_try_is_at_rest_when_all_is_to_stop() -> None:
    world = up(FRONT, WORKER_0)
    world.ends(process="qwen-0")
    assert world.state == "backoff"
    run = world.run
    world.stop()
    assert world.state == "stopped"
    assert not spawns(world.due())
    assert world.run == run


def test_a_plan_that_comes_while_stopping_starts_nothing() -> None:
    world = up(FRONT, WORKER_0)
    world.stop()
    world.plan(FRONT, WORKER_0, wanted("qwen-7"))
    assert not spawns(world.did)
    world.ends(process="frontend-0")
    world.ends(process="qwen-0")
    assert not spawns(world.did)
    assert world.fleet.stopped


def test_a_stuck_tree_holds_nobody_up_and_is_not_called_stopped() -> None:
    world = up(FRONT, WORKER_0)
    world.stop()
    assert stops(world.told(Phase.STUCK, "frontend-0")) == [(world.run, 90.0)]
    world.ends()
    assert not world.fleet.stopped
    assert world.fleet.stuck_stopping
    world.told(Phase.GONE, "frontend-0", exit=exited(None, 9, asked=True))
    assert world.fleet.stopped


def test_a_silent_host_holds_nobody_up_and_is_not_called_stopped() -> None:
    world = up(*ALL)
    world.lost("gpu02")
    world.stop()
    world.ends(process="frontend-0")
    assert stops(world.ends(process="qwen-0")) == [(world["etcd-0"].run, 10.0)]
    world.ends(process="etcd-0")
    assert not world.fleet.stopped
    assert world.fleet.stuck_stopping


def test_a_host_that_returns_while_stopping_is_stopped_too() -> None:
    world = up(WORKER_0)
    run = world.run
    world.lost()
    assert not stops(world.stop())
    assert stops(world.found(run_state(run))) == [(run, 90.0)]
    assert world.state == "draining"


def test_an_order_to_stop_that_was_lost_with_the_line_is_given_again() -> None:
    world = up()
    run = world.run
    world.stop()
    world.stop(skip_drain=True)
    world.lost()
    assert stops(world.found(run_state(run))) == [(run, 0.0)]


def test_an_heir_that_never_heard_of_the_stop_is_told_once() -> None:
    world = up()
    world.stop()
    assert stops(world.told(Phase.RUNNING, heir=True)) == [(world.run, 90.0)]
    assert not stops(world.told(Phase.RUNNING, heir=True))
    assert not stops(world.told(Phase.RUNNING, heir=True, asked=True, stop_step="term_leader"))


def test_nothing_is_called_stopped_before_its_host_has_answered() -> None:
    world = World()
    world.plan(FRONT, WORKER_1)
    world.stop()
    assert not world.fleet.stopped
    world.found()
    assert not world.fleet.stopped
    world.lost("gpu02")
    assert world.states == {"frontend-0": "stopped", "qwen-1": "unknown"}
    assert not world.fleet.stopped
    assert world.fleet.stuck_stopping


def test_a_passing_controller_waits_for_all_hosts_before_it_stops_in_order() -> None:
    """`noray down` without a controller: it starts nothing, and etcd is not stopped under a worker nobody has met yet."""
    world = World(Fleet(stopping=True))
    world.plan(*ALL)
    assert stops(world.found(run_state("01", process="etcd-0"), run_state("02"))) == [("02", 90.0)]
    assert not asks(world.ends())
    assert stops(world.found(run_state("03", process="qwen-1"), host="gpu02")) == [("03", 90.0)]
    assert stops(world.ends(process="qwen-1")) == [("01", 10.0)]
    assert not spawns(world.did)


# --- silence and return --------------------------------------------------------------------------------------------------


def test_a_lost_host_is_unknown_and_nothing_is_started() -> None:
    world = up()
    assert Unwatch("qwen-0") in world.lost()
    assert not asks(world.did)
    assert (world.state, world["qwen-0"].last_known) == ("unknown", "ready")
    world.now_s = 1e6
    assert world.due() == ()
    assert world.lost() == ()


def test_the_same_run_found_again_is_adopted_without_a_restart() -> None:
    world = up()
    run = world.run
    world.lost()
    assert asks(world.found(run_state(run))) == []
    assert (world.state, world.run, world["qwen-0"].restarts) == ("starting", run, 0)
    assert Watch("qwen-0", run) in world.did
    world.ready()
    assert world.state == "ready"


def test_a_run_that_ended_while_its_host_was_away_is_a_failure() -> None:
    world = up()
    world.lost()
    world.found(run_state(world.run, Phase.GONE, exit=exited(0)))
    assert (world.state, world["qwen-0"].restarts) == ("backoff", 1)
    assert spawns(world.due()) == ["qwen-0"]


def test_a_run_that_is_on_no_record_any_more_counts_as_gone_and_is_replaced() -> None:
    world = up()
    world.lost()
    world.found()
    assert (world.state, world["qwen-0"].restarts) == ("backoff", 1)
    assert spawns(world.due()) == ["qwen-0"]


def test_a_run_counted_as_gone_that_shows_up_after_all_is_adopted() -> None:
    world = up()
    run = world.run
    world.lost()
    world.found()
    world.lost()
    world.found(run_state(run))
    assert (world.state, world.run) == ("starting", run)
    assert not spawns(world.did)


def test_an_end_is_counted_once_over_a_lost_line() -> None:
    world = up()
    gone = run_state(world.run, Phase.GONE, exit=exited())
    world.tell(Told("gpu01", gone))
    world.lost()
    assert world.state == "pending"
    assert spawns(world.found(gone)) == ["qwen-0"]
    assert world["qwen-0"].restarts == 1


def test_a_failed_one_stays_failed_whatever_its_line_does() -> None:
    world = up()
    world.ends(exited(None, cause="missing"))
    world.lost()
    assert not asks(world.found(run_state(world.run, Phase.GONE, exit=exited(2))))
    assert world.state == "failed"


def test_a_new_controller_adopts_what_it_finds() -> None:
    world = World()
    world.plan(wanted())
    assert not asks(world.found(run_state("0old"), run_state("0older", Phase.GONE, exit=exited())))
    assert (world.state, world.run) == ("starting", "0old")


def test_an_old_record_of_a_dead_run_is_no_news_to_a_new_controller() -> None:
    world = World()
    world.plan(wanted())
    assert spawns(world.found(run_state("0old", Phase.GONE, exit=exited()))) == ["qwen-0"]
    assert world["qwen-0"].restarts == 0


def test_a_host_that_never_answered_is_unknown_and_its_processes_start_once_it_does() -> None:
    world = World()
    world.plan(wanted())
    world.lost()
    assert world.state == "unknown"
    assert spawns(world.found()) == ["qwen-0"]


def test_an_adopted_run_carries_nothing_over_from_the_one_before() -> None:
    world = up()
    world.ready(instance="77")
    world.ends(exited(None, cause="missing"))
    world.lost()
    world.found(run_state("0other", pid=None))
    p = world["qwen-0"]
    assert (p.state, p.run, p.was_ready, p.proven, p.instance) == ("starting", "0other", False, False, "")


# --- runs nobody wants ---------------------------------------------------------------------------------------------------


def test_of_two_live_runs_our_own_is_kept_and_the_other_ended() -> None:
    world = up()
    run = world.run
    world.lost()
    assert asks(world.found(run_state("0earlier"), run_state(run))) == [
        Stop("gpu01", "0earlier", SURPLUS_TERM_S, SURPLUS_DRAIN_S)
    ]
    assert (world.state, world.run) == ("starting", run)


def test_nothing_is_started_while_another_run_of_it_is_still_ending() -> None:
    world = World()
    world.plan(wanted())
    world.found(run_state("01"), run_state("02"))
    world.ends()
    world.due()
    assert not spawns(world.did)
    world.tell(Told("gpu01", run_state("02", Phase.ENDED, exit=exited(asked=True))))
    assert not spawns(world.did)
    assert spawns(world.tell(Told("gpu01", run_state("02", Phase.GONE)))) == ["qwen-0"]


def test_a_name_that_returns_waits_for_the_run_that_was_sent_away() -> None:
    world = World()
    world.plan(FRONT)
    world.found(run_state("01", process="qwen-0"))
    assert world.fleet.surplus.keys() == {"01"}
    assert not spawns(a for a in world.plan(FRONT, WORKER_0) if getattr(a, "process", "") == "qwen-0")
    assert spawns(world.tell(Told("gpu01", run_state("01", Phase.GONE)))) == ["qwen-0"]


def test_stopped_waits_for_the_runs_that_nobody_wants() -> None:
    world = World()
    world.plan(FRONT)
    world.found(run_state("01", process="qwen-9"))
    world.runs("frontend-0")
    world.stop()
    world.ends(process="frontend-0")
    assert not world.fleet.stopped
    world.tell(Told("gpu01", run_state("01", Phase.GONE, "qwen-9")))
    assert world.fleet.stopped


def test_a_second_request_hurries_them_too() -> None:
    world = World(Fleet(stopping=True))
    world.plan(FRONT)
    world.found(run_state("01", process="qwen-9"))
    assert stops(world.stop(skip_drain=True)) == [("01", 0.0)]


@pytest.mark.parametrize("how", ["stuck", "lost"])
def test_what_cannot_be_ended_does_not_hold_a_stop_for_ever(how: str) -> None:
    world = World(Fleet(stopping=True))
    world.plan(FRONT)
    world.found(run_state("01", process="qwen-9"))
    assert not world.fleet.stuck_stopping
    if how == "stuck":
        world.tell(Told("gpu01", run_state("01", Phase.STUCK, "qwen-9")))
    else:
        world.lost()
    assert world.fleet.stuck_stopping
    assert not world.fleet.stopped


def test_one_that_ended_while_its_host_was_away_is_waited_for_no_longer() -> None:
    world = World(Fleet(stopping=True))
    world.plan(FRONT)
    world.found(run_state("01", process="qwen-9"))
    world.lost()
    world.found()
    assert world.fleet.stopped


# --- changed plans -------------------------------------------------------------------------------------------------------


def test_a_changed_definition_drains_the_old_run_and_then_starts_the_new() -> None:
    world = up()
    run = world.run
    assert stops(world.plan(wanted(launch_hash="h2"))) == [(run, 90.0)]
    assert world.state == "draining"
    assert not spawns(world.told(Phase.ENDED, launch_hash="h1", exit=exited(0, asked=True)))
    assert spawns(world.told(Phase.GONE, launch_hash="h1", exit=exited(0, asked=True), asked=True)) == ["qwen-0"]
    assert world["qwen-0"].restarts == 0
    assert world.run != run
    world.told(Phase.RUNNING)
    assert world.state == "starting"


def test_the_same_plan_again_asks_for_nothing() -> None:
    world = up(*ALL)
    before = world.fleet
    assert world.plan(*ALL) == ()
    assert world.fleet == before


def test_rules_that_need_no_new_run_are_taken_over_by_the_old() -> None:
    world = up()
    assert world.plan(wanted(term_s=1.0, drain_s=2.0)) == ()
    assert stops(world.stop()) == [(world.run, 3.0)]


def test_what_the_plan_no_longer_names_is_stopped_and_then_forgotten() -> None:
    world = up(FRONT, WORKER_0)
    assert stops(world.plan(FRONT)) == [(world.run, 90.0)]
    assert world.state == "draining"
    world.ends()
    assert world.states == {"frontend-0": "ready"}


@pytest.mark.parametrize("how", ["failed", "backoff", "unasked", "never-reached"])
def test_what_is_not_there_is_forgotten_at_once(how: str) -> None:
    world = up(FRONT, WORKER_0) if how in ("failed", "backoff") else World()
    world.plan(FRONT, WORKER_0)
    if how == "failed":
        world.ends(exited(None, cause="missing"))
    elif how == "backoff":
        world.ends()
    elif how == "never-reached":
        world.lost()
    world.plan(FRONT)
    assert list(world.states) == ["frontend-0"]


def test_what_is_named_again_while_it_drains_comes_back_and_has_not_failed() -> None:
    world = up(FRONT, WORKER_0)
    world.plan(FRONT)
    world.plan(FRONT, WORKER_0)
    assert world.state == "draining"
    assert spawns(world.ends()) == ["qwen-0"]
    assert world["qwen-0"].restarts == 0


def test_what_moves_is_gone_from_the_old_host_before_it_starts_on_the_new() -> None:
    world = up(WORKER_0, WORKER_1)
    run = world.run
    assert asks(world.plan(wanted(host="gpu02", stop_rank=1), WORKER_1)) == [Stop("gpu01", run, 90.0, 60.0)]
    moved = world.ends()
    assert [(a.process, a.host) for a in moved if isinstance(a, Spawn)] == [("qwen-0", "gpu02")]


def test_what_moves_away_from_a_silent_host_waits_until_it_is_known() -> None:
    world = up(WORKER_0, WORKER_1)
    run = world.run
    world.lost()
    assert not asks(world.plan(wanted(host="gpu02", stop_rank=1), WORKER_1))
    assert stops(world.found(run_state(run))) == [(run, 90.0)]
    assert spawns(world.ends()) == ["qwen-0"]


def test_a_host_name_that_was_wrong_can_be_corrected() -> None:
    world = World()
    world.plan(wanted(host="gpu99"), WORKER_1)
    world.lost("gpu99", refused=True)
    world.found(host="gpu02")
    assert spawns(world.plan(wanted(host="gpu02"), WORKER_1)) == ["qwen-0"]


# --- facts told again ----------------------------------------------------------------------------------------------------


def test_a_host_is_found_once_between_two_losses() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    before = world.fleet
    assert world.found() == ()
    assert world.fleet == before


# --- an onlooker ---------------------------------------------------------------------------------------------------------


def test_an_onlooker_asks_nothing_of_the_world() -> None:
    world = World(Fleet(observing=True))
    world.plan(*ALL, wanted("qwen-5"))
    world.found(
        run_state("01"),
        run_state("02"),
        run_state("03", process="nobody"),
        run_state("04", Phase.GONE, "qwen-5", exit=exited(7)),
    )
    world.runs()
    world.ready(instance="77")
    world.ends()
    world.lost("gpu02")
    world.stop(skip_drain=True)
    assert {type(a) for a in world.did} <= {Watch, Unwatch}


def test_an_onlooker_says_what_it_finds() -> None:
    world = World(Fleet(observing=True))
    world.plan(WORKER_0, WORKER_1, wanted("qwen-5"), ETCD)
    world.found(
        run_state("01"),
        run_state("04", Phase.GONE, "qwen-5", exit=exited(7)),
        run_state("05", Phase.GONE, "etcd-0", exit=exited(0, asked=True)),
    )
    world.lost("gpu02")
    assert world.states == {"qwen-0": "starting", "qwen-1": "unknown", "qwen-5": "failed", "etcd-0": "stopped"}


# --- what a logout does on its hosts ---------------------------------------------------------------------------------------


def test_what_a_logout_does_is_shown_and_told_anew() -> None:
    world = up(wanted())
    bad = Logout(False, "logind ends the processes of ada at logout", "loginctl enable-linger ada")
    world.lost()
    world.tell(HostFound("gpu01", (), logout=bad))
    assert shown(world)["logout"] == {"survives": False, "why": bad.why, "remedy": bad.remedy}
    good = Logout(True, "ada lingers")
    assert not world.tell(LogoutTold("gpu01", good))
    assert shown(world)["logout"] == {"survives": True, "why": good.why, "remedy": ""}
    world.tell(LogoutTold("no-host-of-ours", bad))
    assert list(world.fleet.hosts) == ["gpu01"]


def test_a_host_that_says_nothing_of_logouts_is_not_blamed() -> None:
    assert "logout" not in shown(up(wanted()))


def test_a_start_that_would_end_with_its_login_is_not_tried_again() -> None:
    world = up(wanted())
    world.told(Phase.GONE, exit=exited(None, cause="logout", message="first run there: loginctl enable-linger ada"))
    assert world["qwen-0"].state is State.FAILED
    assert "loginctl enable-linger ada" in world["qwen-0"].reason


def shown(world: World) -> HostStatus:
    (host,) = status(world.fleet, deployment="d", endpoints=[], controller=None, now_s=world.now_s)["hosts"]
    return host


def test_a_new_run_sorts_after_all_that_a_host_knows() -> None:
    """Hosts keep the newest by their ids: under a clock that was set back, the newest failures would be forgotten first."""
    later = run_id(7_200_000, 1)
    assert run_ms(later) == 7_200_000
    world = World(Fleet(epoch_ms=3_600_000))
    world.plan(wanted())
    world.found(run_state(later, Phase.GONE, exit=exited()), run_state("not-ours", Phase.GONE, process="other-0"))
    first = world.run
    assert first > later
    world.runs()
    world.ends()
    world.due()
    assert world.run > first


def test_what_waits_for_its_turn_to_stop_is_not_called_unready_because_who_asked_for_it_went_first() -> None:
    world = up(wanted("frontend-0"), wanted("qwen-0", stop_rank=1))
    world.stop()
    assert world.states == {"frontend-0": "draining", "qwen-0": "ready"}
    world.tell(Probed("qwen-0", world.run, "loaded, not registered yet", ready=False, well=True))
    assert world.states["qwen-0"] == "ready"
    world.ends(process="frontend-0")
    assert world.states == {"frontend-0": "stopped", "qwen-0": "draining"}
