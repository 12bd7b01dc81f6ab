"""What several verbs share: reading the files, the terminal, asking, and finding who knows the truth."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anyio

from supervisor.cli.render.text import Look
from supervisor.control.client import NoController, connect
from supervisor.core.snapshot import Status
from supervisor.effects.statedir import Files, StateDir, choose, known
from supervisor.errors import FileError, UsageError

if TYPE_CHECKING:
    from supervisor.spec import Host


def read_files(file: Path, inventory: Path | None) -> Files:
    """Both files as text. `inventory`: -i, else NORAY_INVENTORY, else none. Raises FileError."""
    given = inventory_path(inventory)
    return Files(_text(file), file.absolute(), _text(given) if given else None, given.absolute() if given else None)


def inventory_path(inventory: Path | None) -> Path | None:
    """`inventory`: -i, else NORAY_INVENTORY, else none. Of a directory its hosts.yaml."""
    given = inventory or (Path(os.environ["NORAY_INVENTORY"]) if os.environ.get("NORAY_INVENTORY") else None)
    return given / "hosts.yaml" if given is not None and given.is_dir() else given


def meant_hosts(args: argparse.Namespace) -> Mapping[str, Host]:
    """Of the inventory those that `hosts` names; all, if none. The inventory is that of -i, of NORAY_INVENTORY, or of the
    deployment known here; with none of these it is this machine.

    Raises UsageError for a name that is not in it, FileError, NorayError.
    """
    from supervisor.spec import load_inventory  # pydantic: the verbs of every day need not wait for it
    from supervisor.spec.problem import did_you_mean, listed

    path = inventory_path(args.inventory)
    here = path is not None or (args.deployment is None and not known())
    hosts = (load_inventory(path) if here else choose(args.deployment).load().read_inventory()).hosts
    for name in args.hosts:
        if name not in hosts:
            raise UsageError(f"no host {name} in the inventory; it has {listed(hosts)}{did_you_mean(name, hosts)}")
    return {name: host for name, host in hosts.items() if not args.hosts or name in args.hosts}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read: {error}") from None


def look() -> Look:
    terminal = sys.stdout.isatty()
    return Look(size()[0] - 1 if terminal else None, terminal and "NO_COLOR" not in os.environ)


def size() -> tuple[int, int]:
    columns, lines = shutil.get_terminal_size()
    return columns, lines


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(data: object) -> None:
    write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def confirm(question: str, yes: bool) -> bool:
    """On a terminal ask; elsewhere only --yes is a yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        sys.stderr.write(f"{question} Not a terminal: say --yes.\n")
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def see(state: StateDir) -> Status:
    """The status, from the controller if there is one, else from the hosts."""
    try:
        async with connect(state.socket) as client:
            async for item in client.request("status"):
                return as_status(item)
    except NoController:
        pass
    from supervisor.app import Controller, Use  # asyncssh and all: a third of a second that a controller saves

    controller = Controller(state.load(), state, Use.OBSERVE)
    async with anyio.create_task_group() as tasks:
        await tasks.start(controller.run)
        seen = await controller.observe()
        tasks.cancel_scope.cancel()
    return seen


def user() -> str:
    """Who is at the keyboard, for what others will read: behind sudo too."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def as_status(item: Mapping[str, object]) -> Status:
    return cast(Status, item)
