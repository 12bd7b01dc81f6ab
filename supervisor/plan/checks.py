"""What only shows when both files are seen together, and makes a plan impossible. Each raises FileError, or says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from supervisor.core.wanted import Wanted
from supervisor.errors import FileError
from supervisor.kinds import KINDS
from supervisor.kinds.base import MAX_SYSTEM_PORT, clashes
from supervisor.plan.login import AUTH
from supervisor.spec import Deployment, Host


def owned(where: str, kind: str, args: Mapping[str, object], extra: tuple[str, ...]) -> None:
    """The operator's flags are not those that noray sets."""
    bad = clashes(KINDS[kind].owned, args, extra)
    if bad:
        raise FileError(
            f"{where}: {', '.join(bad)} is set by noray itself", hint="leave it out; other keys of the file decide it"
        )


def routed(where: str, task: str, router: Mapping[str, object]) -> None:
    """Dynamo 1.4.2 routes no embedding by KV: 500, "KV routing should not call generate on PushRouter" (measured)."""
    if task == "embedding" and router.get("router_mode") == "kv":
        raise FileError(
            f"{where}: found an embedding worker, and router_mode kv for the frontend, which answers every embedding with 500",
            hint="frontend.args: {router_mode: round-robin}; a model that is to be routed by KV needs a deployment of its own",
        )


def no_credentials(deployment: Deployment, hosts: Mapping[str, Host]) -> None:
    """They are secrets, and the same for whatever runs on a host: they stand in its env_file."""
    written = {"env": deployment.env, "frontend.env": deployment.frontend.env}
    written |= {f"models[{index}].env": model.env for index, model in enumerate(deployment.models)}
    written |= {f"hosts.{host.name}.env": host.env or {} for host in hosts.values()}
    for where, env in written.items():
        bad = [key for key in env if key.startswith(AUTH)]
        if bad:
            raise FileError(f"{where}: {', '.join(bad)} must not stand there", hint="write it in the env_file of the hosts")


def lent(processes: Iterable[Wanted], hosts: Mapping[str, Host]) -> None:
    """What a model names must be among what its host lends, as far as both are written in one way."""
    for wanted in processes:
        own = hosts[wanted.host].gpus
        for gpu in wanted.gpus if own is not None else ():
            alike = [one for one in own or () if type(one) is type(gpu)]
            if gpu not in alike and (alike or not own):
                names = ", ".join(map(str, own or ())) or "none"
                raise FileError(
                    f"{wanted.name}: GPU {gpu} of {wanted.host} is not lent to noray; hosts.{wanted.host}.gpus has: {names}",
                    hint="name another one, or add it there",
                )


def ranges(hosts: Mapping[str, Host]) -> None:
    for host in hosts.values():
        if host.ports[1] > MAX_SYSTEM_PORT:
            raise FileError(
                f"hosts.{host.name}.ports: found {host.ports[0]}-{host.ports[1]}, allowed: up to {MAX_SYSTEM_PORT}",
                hint="Dynamo reads DYN_SYSTEM_PORT as a 16-bit signed number",
            )


def ports(fixed: Iterable[tuple[Wanted, Mapping[str, object]]]) -> None:
    """No two processes of one host want one number. `fixed`: each with the options of its kind."""
    taken: dict[tuple[str, int], str] = {}
    for wanted, options in fixed:
        for key in ("port", "client_port", "peer_port"):
            number = options.get(key)
            if isinstance(number, int) and number:
                other = taken.setdefault((wanted.host, number), wanted.name)
                if other != wanted.name:
                    raise FileError(f"{wanted.name} and {other} both want port {number} on {wanted.host}")
