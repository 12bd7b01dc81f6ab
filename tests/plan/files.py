"""Two small files, changed by each test where it matters to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from supervisor.plan.build import Plan, build
from supervisor.spec import parse_deployment, parse_inventory


def text(data: object) -> str:
    out = io.StringIO()
    YAML(typ="safe").dump(data, out)
    return out.getvalue()


def hosts(**changes: Any) -> dict[str, Any]:
    """Two hosts; `gpu01={...}` adds to one."""
    known: dict[str, Any] = {
        "gpu01": {"cluster_address": "10.1.0.11", "python": "/opt/dynamo/bin/python"},
        "gpu02": {"cluster_address": "10.1.0.12", "python": "/opt/dynamo/bin/python"},
    }
    for name, more in changes.items():
        known[name] = {**known.get(name, {}), **more}
    return {"hosts": known}


def deployment(model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    qwen = {"name": "qwen", "model": "Qwen/Qwen3-0.6B", "engine": "mocker", "replicas": 3}
    return {"name": "lab", "models": [{**qwen, **(model or {})}], **more}


def plan(deployed: dict[str, Any] | None = None, inventory: dict[str, Any] | None = None) -> Plan:
    known = parse_inventory(text(inventory or hosts()), Path("/nowhere/hosts.yaml"))
    return build(parse_deployment(text(deployed or deployment()), known), known)


def alone(**host: Any) -> dict[str, Any]:
    return {"hosts": {"gpu01": {"python": "/opt/dynamo/bin/python", **host}}}
