"""The rim: two YAML files in, frozen values out, or every mistake with its line and column.

Nothing past this layer sees a raw dict of a file. `load_inventory` comes first: a deployment is read against it.
"""

from __future__ import annotations

from supervisor.spec.deployment import (
    Deployment,
    Frontend,
    Model,
    Ready,
    Restart,
    Stop,
    load_deployment,
    parse_deployment,
)
from supervisor.spec.env_file import load_env_file
from supervisor.spec.infrastructure import Discovery, Etcd, Planes
from supervisor.spec.inventory import Host, Inventory, load_inventory, parse_inventory
from supervisor.spec.problem import Place, Problem, SpecError

__all__ = [
    "Deployment",
    "Discovery",
    "Etcd",
    "Frontend",
    "Host",
    "Inventory",
    "Model",
    "Place",
    "Planes",
    "Problem",
    "Ready",
    "Restart",
    "SpecError",
    "Stop",
    "load_deployment",
    "load_env_file",
    "load_inventory",
    "parse_deployment",
    "parse_inventory",
]
