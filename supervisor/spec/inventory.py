"""`hosts.yaml`: where things may run. `defaults` holds for every host that does not say otherwise; `env` and `labels` add up.

Two shapes on purpose: `HostKeys` is what somebody wrote, all optional; `Host` is what the rest of noray works with,
defaults merged and paths absolute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from supervisor.spec.document import Document, parse, read
from supervisor.spec.env_file import load_env_file
from supervisor.spec.gpus import GpuList
from supervisor.spec.names import reserved
from supervisor.spec.problem import Problem, SpecError, where
from supervisor.spec.report import from_pydantic
from supervisor.spec.words import (
    Address,
    Context,
    Env,
    HostPath,
    Interpreter,
    Labels,
    LocalPath,
    Login,
    Name,
    Port,
    PortRange,
    Says,
    Section,
)

PORTS = (18000, 19999)  # where processes get ports that nobody fixed; both ends included


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. None means: not said; the transport, the plan or the host itself decides."""

    name: str
    transport: Literal["local", "ssh"]
    python: str  # the interpreter of the Dynamo environment there
    address: str | None = None  # what one would type after `ssh`; None: `name`. A name may be an alias of ssh_config
    port: int | None = None  # of sshd
    user: str | None = None
    key: Path | None = None  # a private key on this machine
    known_hosts: Path | None = None
    ssh_config: Path | None = None  # read instead of the user's and the system's
    cluster_address: str | None = None  # what other hosts dial, and services bind
    env: Mapping[str, str] | None = None
    env_file: Path | None = None  # checked, its values not kept here: see load_env_file
    ports: tuple[int, int] = PORTS
    host_dir: str | None = None  # None: the host's own choice
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[int | str, ...] | None = None  # the only ones noray may use there; None: all


@dataclass(frozen=True, slots=True)
class Inventory:
    """All hosts, in the order of the file. `path` None: no file, only this machine."""

    path: Path | None
    hosts: Mapping[str, Host]


def _secrets(path: Path) -> Path:
    try:
        load_env_file(path)
    except SpecError as error:
        lines = (f"line {p.place.line}: {p.text}" if p.place else p.text for p in error.problems)
        raise PydanticCustomError("env_file", "{why}", {"why": "; ".join(lines)}) from None
    return path


class Defaults(Section):
    """The keys that a host may have and that several hosts can share."""

    transport: Annotated[Literal["ssh", "local"], Says("ssh or local")] = "ssh"
    port: Port | None = None
    user: Login | None = None
    key: LocalPath | None = None
    known_hosts: LocalPath | None = None
    ssh_config: LocalPath | None = None
    python: Interpreter | None = None
    env: Env = Field(default_factory=dict)
    env_file: Annotated[LocalPath, AfterValidator(_secrets)] | None = None
    ports: PortRange = Field(default=PORTS, json_schema_extra={"default": "18000-19999"})
    host_dir: HostPath | None = None
    labels: Labels = Field(default_factory=dict)
    gpus: GpuList | None = None


class HostKeys(Defaults):
    """What stands under one host's name."""

    address: Address | None = None
    cluster_address: Address | None = None


class InventoryFile(Section):
    """The whole file as written."""

    defaults: Defaults = Defaults()
    hosts: Annotated[Mapping[Name, HostKeys], Field(min_length=1)]


def load_inventory(path: Path | None) -> Inventory:
    """Read and check one inventory file; None is this machine as the host `local`, with the Python running noray.

    Raises SpecError with everything that is wrong, the secrets files it names included.
    """
    if path is None:
        return Inventory(None, {"local": Host("local", "local", sys.executable, env={})})
    return parse_inventory(read(path), path)


def parse_inventory(text: str, path: Path) -> Inventory:
    """`load_inventory` for text that is no file yet; relative paths in it start at the folder of `path`."""
    document = parse(text, path)
    problems = [*document.problems, *_reserved_names(document)]
    try:
        file = InventoryFile.model_validate(document.data, context=Context(path.absolute().parent))
    except ValidationError as error:
        raise SpecError([*problems, *from_pydantic(error, document, InventoryFile)]) from None
    problems += _disagreements(file, document)
    if problems:
        raise SpecError(problems)
    return Inventory(path, {name: _host(name, keys, file.defaults) for name, keys in file.hosts.items()})


_ONLY_SSH = ("address", "port", "user", "key", "known_hosts", "ssh_config")


def _host(name: str, keys: HostKeys, defaults: Defaults) -> Host:
    said: dict[str, Any] = _said(defaults) | _said(keys)
    if said.get("transport") == "local":
        for key in _ONLY_SSH:  # from the defaults, meant for the others
            said.pop(key, None)
    said |= {"env": {**defaults.env, **keys.env}, "labels": {**defaults.labels, **keys.labels}}
    return Host(**{"name": name, "transport": "ssh", "python": sys.executable, **said})


def _said(keys: Defaults) -> dict[str, Any]:
    return {key: getattr(keys, key) for key in keys.model_fields_set}


def _disagreements(file: InventoryFile, document: Document) -> Iterator[Problem]:
    for name, keys in file.hosts.items():
        said = _said(file.defaults) | _said(keys)
        local = said.get("transport") == "local"
        if not local and said.get("python") is None:
            text = "missing, allowed: the absolute path of the host's Python interpreter, here or in defaults"
            yield document.problem(("hosts", name, "python"), text)
        for key in sorted(keys.model_fields_set.intersection(_ONLY_SSH)) if local else ():
            loc = ("hosts", name, key)
            text = "found with transport: local, allowed: only with transport: ssh"
            yield Problem(document.path, document.key_place(loc), where(loc), text)


def _reserved_names(document: Document) -> Iterator[Problem]:
    hosts = document.data.get("hosts") if isinstance(document.data, dict) else None
    for name in hosts if isinstance(hosts, dict) else ():
        if text := reserved(name):
            yield Problem(document.path, document.key_place(("hosts", name)), where(("hosts", name)), text)
