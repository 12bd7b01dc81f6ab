"""`noray init`: a first hosts.yaml and deployment.yaml, from the aliases of ssh_config and what their hosts answer."""

from __future__ import annotations

import argparse
import ipaddress
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from supervisor.cli.common import look, write
from supervisor.cli.render.init import Asked, deployment_yaml, host_name, hosts_yaml, show_asked
from supervisor.errors import FileError, HostRefused, HostUnreachable, NoInterpreter, NorayError, UsageError
from supervisor.runtime.greeting import Greeting
from supervisor.runtime.hostlink import VERSION
from supervisor.transport import HostAddress, transport_for
from supervisor.transport.ssh import aliases, settings

PYTHONS = ("/opt/dynamo/bin/python", "/usr/bin/python3")  # of an ssh host, the first that is there
OPEN_S, GPUS_S = 15.0, 10.0
AT_ONCE = 16
ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}")


def run(args: argparse.Namespace) -> int:
    return anyio.run(_init, args)


async def _init(args: argparse.Namespace) -> int:
    files = [args.directory / name for name in ("hosts.yaml", "deployment.yaml")]
    for path in files:
        if path.exists() and not args.force:
            raise _exists(path)
    if args.python and not args.python.startswith("/"):
        raise UsageError(f"--python {args.python}: found a relative path, allowed: an absolute one, as it is on the hosts")
    names = [] if args.local else args.host or _aliases()
    pythons = (args.python,) if args.python else PYTHONS if names else (sys.executable,)
    asked = await _ask_all(_candidates(names), pythons)
    write(show_asked(asked, look()))
    if all(each.error for each in asked):
        raise NorayError("no host answers, so nothing was written", hint="for this machine alone: noray init --local")
    args.directory.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, (hosts_yaml(asked, pythons), deployment_yaml(asked)), strict=True):
        _write(path, text, args.force)
    write(f"\nwritten: {files[0]} and {files[1]}\nnext: noray plan {files[1]} -i {files[0]}\n")
    return 0


def _exists(path: Path) -> FileError:
    return FileError(f"{path}: is there already, and is left as it is", hint="to write it anew: noray init --force")


def _write(path: Path, text: str, force: bool) -> None:
    try:
        with path.open("w" if force else "x") as file:
            file.write(text)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None


def _aliases() -> list[str]:
    try:
        return aliases(None)
    except (OSError, ValueError) as error:
        raise FileError(str(error)) from None


def _candidates(names: Sequence[str]) -> list[Asked]:
    found: list[Asked] = []
    for alias in names:
        name = host_name(alias, [each.name for each in found])
        error = "" if ADDRESS.fullmatch(alias) else f"{alias!r} is no name that can stand under `address`"
        found.append(Asked(name, alias if alias != name else "", error=error))
    return found or [Asked("local", local=True)]


async def _ask_all(candidates: Sequence[Asked], pythons: Sequence[str]) -> list[Asked]:
    """All at once, each in its own time; in the order they came in."""
    answers = list(candidates)
    gate = anyio.CapacityLimiter(AT_ONCE)

    async def ask(n: int) -> None:
        async with gate:
            answers[n] = await _ask(candidates[n], pythons)

    async with anyio.create_task_group() as tasks:
        for n, each in enumerate(candidates):
            if not each.error:
                tasks.start_soon(ask, n)
    return answers


async def _ask(host: Asked, pythons: Sequence[str]) -> Asked:
    error: NorayError | None = None
    for python in pythons:
        address = HostAddress(host.name, "local" if host.local else "ssh", host.address or None, python=python)
        try:
            hello, seen, trouble = await _converse(address)
            cards = [gpu for gpu in seen.get("gpus", ()) if not gpu.get("mig") and not gpu.get("error")]
            return replace(
                host,
                python=python,
                python_version=hello.get("python_version", ""),
                gpus=tuple((gpu["index"], gpu["name"]) for gpu in cards),
                gpus_error=trouble or seen.get("error", ""),
                cluster_address="" if host.local else await _cluster_address(address),
            )
        except NoInterpreter as exc:
            error = exc
        except (HostRefused, HostUnreachable) as exc:
            return replace(host, error=str(exc))
    return replace(host, error=str(error))


async def _converse(address: HostAddress) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """The host's first word, its look at its GPUs, and why there is none."""
    transport = transport_for(address)
    hello: Mapping[str, Any] = {}
    try:
        channel = await transport.open("link", OPEN_S)
        me = Greeting(time.time()).hello("init", read_only=True, take_over=False)
        await channel.send({**me, "op": "hello", "v": VERSION})
        with anyio.fail_after(GPUS_S):
            async for said in channel:
                match said:
                    case {"hello": dict(hello)}:
                        pass
                    case {"gpus": dict(seen)}:
                        return hello, seen, ""
                    case {"refused": why}:
                        raise HostRefused(f"{address.name}: {why}")
    except TimeoutError:
        if not hello:
            raise HostUnreachable(f"{address.name} did not answer within {GPUS_S:g} s") from None
    finally:
        with anyio.CancelScope(shield=True):
            await transport.aclose()
    return hello, {}, f"its GPUs could not be seen within {GPUS_S:g} s"


async def _cluster_address(address: HostAddress) -> str:
    """The IP address that we dial, if we dial it: behind a jump host a name may mean something else."""
    hops = (await settings(address)).hops
    try:
        return str(ipaddress.ip_address(hops[-1].host))
    except ValueError:
        pass
    if len(hops) > 1 or hops[-1].proxy_command:
        return ""
    try:
        found = await anyio.to_thread.run_sync(socket.getaddrinfo, hops[-1].host, hops[-1].port, 0, socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0])
