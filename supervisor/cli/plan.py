"""`noray plan`: what `up` would run, and where.

The hosts are asked where something has no place yet, as only they know which GPUs are free, and with -v, as only they know
their login's environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import anyio

from supervisor.app import Controller, Use
from supervisor.cli.common import look, read_files, write, write_json
from supervisor.cli.render.plan import PlanRow, StopTimes, show_plan
from supervisor.core.wanted import Wanted
from supervisor.effects.statedir import Files, StateDir, of
from supervisor.errors import HostUnreachable
from supervisor.kinds import KINDS
from supervisor.kinds.base import KILL_S, RETURN_S
from supervisor.plan.build import Plan
from supervisor.plan.diff import diff
from supervisor.plan.launch import HostFacts, launch
from supervisor.runtime.hostlink import OPEN_S
from supervisor.spec import load_env_file

NOT_ASKED = HostFacts(base="${host_dir}")


def run(args: argparse.Namespace) -> int:
    files = read_files(args.file, args.inventory)
    state = of(files.plan().deployment)
    files = state.scaled(files)
    plan, facts = files.plan(state.load_seats()), dict[str, HostFacts]()
    if args.verbose or plan.unplaced:
        plan, facts = anyio.run(_ask_hosts, files, state, args.verbose)
    rows, secrets = rows_of(plan, facts)
    unplaced = {name: process.wanted.unplaced for name, process in plan.unplaced.items()}
    changes = _changes(state, plan)
    if args.json:
        masked = [{**row, "env": {k: "••••" if k in secrets else v for k, v in row["env"].items()}} for row in rows]
        write_json({"deployment": plan.deployment, "processes": masked, "unplaced": unplaced, "changes": changes})
        return 1 if unplaced else 0
    write(show_plan(rows, look(), verbose=args.verbose, secrets=secrets, unplaced=unplaced))
    if changes is not None:
        write("\n" + ("against what was last started:\n" if changes else "nothing differs from what was last started\n"))
        for change in changes:
            write(f"  {change['what']:8} {change['process']}  ({change['why']})\n")
    return 1 if unplaced else 0


def rows_of(plan: Plan, facts: Mapping[str, HostFacts]) -> tuple[list[PlanRow], frozenset[str]]:
    """Each process as it would be launched; the keys whose values are secret."""
    rows: list[PlanRow] = []
    secrets: set[str] = set()
    for name, process in plan.processes.items():
        host = plan.hosts[process.wanted.host]
        hidden = load_env_file(host.env_file) if host.env_file else {}
        made = launch(plan, name, facts.get(host.name, NOT_ASKED), hidden, controller="")
        ports = {port: number for port, (number, *_) in _ports(made.spec).items()}
        rows.append({"process": name, "host": host.name, "kind": process.wanted.kind, "ports": ports,
                     "gpus": list(process.wanted.gpus), "argv": list(made.argv), "env": dict(made.env),
                     "stop": _stop(process.wanted), "why": process.why})  # fmt: skip
        secrets |= made.secret_keys
    return rows, frozenset(secrets)


def _stop(wanted: Wanted) -> StopTimes:
    usual = KINDS[wanted.kind].stop
    asked = (wanted.drain_s, wanted.term_s) != (usual.drain_s, usual.term_s)
    because = "models[].stop of the file" if asked else usual.because
    return {"drain_s": wanted.drain_s, "term_s": wanted.term_s, "stuck_s": KILL_S, "gpu_s": RETURN_S, "because": because}


def _ports(spec: Mapping[str, object]) -> dict[str, tuple[int, str, int]]:
    ports = spec["ports"]
    assert isinstance(ports, dict)
    return ports


def _changes(state: StateDir, plan: Plan) -> list[dict[str, str]] | None:
    """Against what was last started here under this name; None if nothing was."""
    if not state.exists:
        return None
    return [{"process": c.process, "what": c.what, "why": c.why} for c in diff(state.plan().wanted, plan.wanted)]


async def _ask_hosts(files: Files, state: StateDir, all_: bool) -> tuple[Plan, dict[str, HostFacts]]:
    """The plan with a place for who had none, and what the hosts said of themselves. `all_`: every host must answer."""
    controller = Controller(files, state, Use.OBSERVE)
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        with anyio.move_on_after(OPEN_S):
            async for _ in controller.changes():
                asked = [host.name for host in controller.fleet.hosts.values() if not host.unasked]
                if controller.plan.hosts.keys() <= set(asked):
                    break
        plan, _ = await controller.placing.chosen(files)
        facts = controller.host_facts()
        silent = [host for host in plan.hosts if host not in facts]
        tasks.cancel_scope.cancel()
    if silent and all_:
        raise HostUnreachable(f"no answer from {', '.join(silent)}", "without -v the plan needs no host")
    return plan, facts
