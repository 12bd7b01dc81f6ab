"""`noray plan`: what `up` would run. With -v the hosts are asked, because only they know their login's environment."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import anyio

from supervisor.app import Controller, Use
from supervisor.cli.common import look, read_files, write, write_json
from supervisor.cli.render.plan import PlanRow, StopTimes, show_plan
from supervisor.core.wanted import Wanted
from supervisor.effects.statedir import Files, of
from supervisor.errors import HostUnreachable
from supervisor.kinds import KINDS
from supervisor.kinds.base import KILL_S, RETURN_S
from supervisor.plan.build import Plan
from supervisor.plan.diff import diff
from supervisor.plan.launch import HostFacts, launch
from supervisor.spec import load_env_file

NOT_ASKED = HostFacts(base="${host_dir}")


def run(args: argparse.Namespace) -> int:
    files = read_files(args.file, args.inventory)
    plan = files.plan()
    facts = anyio.run(_ask_hosts, files, plan) if args.verbose else {}
    rows, secrets = rows_of(plan, facts)
    changes = _changes(plan)
    if args.json:
        masked = [{**row, "env": {k: "••••" if k in secrets else v for k, v in row["env"].items()}} for row in rows]
        write_json({"deployment": plan.deployment, "processes": masked, "changes": changes})
        return 0
    write(show_plan(rows, look(), verbose=args.verbose, secrets=secrets))
    if changes is not None:
        write("\n" + ("against what was last started:\n" if changes else "nothing differs from what was last started\n"))
        for change in changes:
            write(f"  {change['what']:8} {change['process']}  ({change['why']})\n")
    return 0


def rows_of(plan: Plan, facts: Mapping[str, HostFacts]) -> tuple[list[PlanRow], frozenset[str]]:
    """Each process as it would be launched; the keys whose values are secret."""
    rows: list[PlanRow] = []
    secrets: set[str] = set()
    for name, process in plan.processes.items():
        host = plan.hosts[process.wanted.host]
        hidden = load_env_file(host.env_file) if host.env_file else {}
        made = launch(plan, name, facts.get(host.name, NOT_ASKED), hidden, controller="")
        ports = {port: number for port, (number, _) in _ports(made.spec).items()}
        rows.append({"process": name, "host": host.name, "kind": process.wanted.kind, "ports": ports,
                     "gpus": list(process.wanted.gpus), "argv": list(made.argv), "env": dict(made.env),
                     "stop": _stop(process.wanted)})  # fmt: skip
        secrets |= made.secret_keys
    return rows, frozenset(secrets)


def _stop(wanted: Wanted) -> StopTimes:
    usual = KINDS[wanted.kind].stop
    asked = (wanted.drain_s, wanted.term_s) != (usual.drain_s, usual.term_s)
    because = "models[].stop of the file" if asked else usual.because
    return {"drain_s": wanted.drain_s, "term_s": wanted.term_s, "stuck_s": KILL_S, "gpu_s": RETURN_S, "because": because}


def _ports(spec: Mapping[str, object]) -> dict[str, tuple[int, str]]:
    ports = spec["ports"]
    assert isinstance(ports, dict)
    return ports


def _changes(plan: Plan) -> list[dict[str, str]] | None:
    """Against what was last started here under this name; None if nothing was."""
    state = of(plan.deployment)
    if not (state.path / "deployment.json").exists():
        return None
    before = state.load().plan()
    return [{"process": c.process, "what": c.what, "why": c.why} for c in diff(before.wanted, plan.wanted)]


async def _ask_hosts(files: Files, plan: Plan) -> dict[str, HostFacts]:
    controller = Controller(files, of(plan.deployment), Use.OBSERVE)
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        await controller.observe()
        facts = controller.host_facts()
        silent = [host for host in plan.hosts if host not in facts]
        tasks.cancel_scope.cancel()
    if silent:
        raise HostUnreachable(f"no answer from {', '.join(silent)}", "without -v the plan needs no host")
    return facts
