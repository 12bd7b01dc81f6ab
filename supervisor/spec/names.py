"""One namespace for services, hosts and processes: `noray stop qwen-0` must mean one thing.

Processes are called `<service>-<i>`, and a service may be scaled at any time, so `qwen-7` is taken by the service
`qwen` whatever its replicas are today. The check reads the document and not the models: a clash is worth saying even
when the same file has other mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from supervisor.spec.document import Document
from supervisor.spec.problem import Loc, Problem, where
from supervisor.spec.roles import ROLES

OWN_SERVICES = ("etcd", "etcd-gateway", "frontend", "nats")


def service_of(name: str, services: Collection[str]) -> str | None:
    """The service that would call one of its processes `name`, or None."""
    found = re.fullmatch(r"(.+)-(0|[1-9][0-9]*)", name)
    return found[1] if found and found[1] in services else None


def reserved(host: str) -> str:
    """Why a host must not be called this, or ""."""
    if host in OWN_SERVICES:
        return f"found the name of the service {host}, allowed: another name (its own goes to the key address)"
    if service := service_of(host, OWN_SERVICES):
        return f"found a process name of the service {service}, allowed: another name (its own goes to the key address)"
    return ""


def clashes(document: Document, hosts: Collection[str]) -> Iterator[Problem]:
    """The models of a deployment whose names mean something else as well. A disaggregated one has its own and its roles'."""
    named = list(_model_names(document))
    services = {*OWN_SERVICES, *(name for _, name in named)}
    first: dict[str, Loc] = {}
    for loc, name in named:
        if first.get(name) == document.written(loc):
            continue
        taken = next((host for host in hosts if service_of(host, {name})), None)
        if name in OWN_SERVICES:
            text = "the name of one of noray's own services"
        elif name in hosts:
            text = "the name of a host of the inventory"
        elif name in first:
            text = f"the name of {where(first[name])}"
        elif service := service_of(name, services):
            text = f"a process name of the service {service}"
        elif taken:
            text = f"a service whose process name {taken} is a host of the inventory"
        else:
            first[name] = document.written(loc)
            continue
        yield document.problem((*loc, "name"), f"found {name!r}, {text}, allowed: a name that nothing else has")


def _model_names(document: Document) -> Iterator[tuple[Loc, str]]:
    models = document.data.get("models") if isinstance(document.data, dict) else None
    for index, model in enumerate(models if isinstance(models, tuple) else ()):
        if isinstance(model, dict) and isinstance(name := model.get("name"), str):
            loc: Loc = ("models", index)
            for role in ROLES:
                if role in model and name.endswith(f"-{role}"):
                    yield loc, name.removesuffix(f"-{role}")
            yield loc, name
