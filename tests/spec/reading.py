"""How the tests of this folder read: text in, the lines of the complaint out."""

from __future__ import annotations

from pathlib import Path

from supervisor.spec import Host, Inventory, SpecError, parse_deployment, parse_inventory

TWO = Inventory(None, {name: Host(name, "local", "/opt/dynamo/bin/python", env={}) for name in ("gpu01", "gpu02")})
ONE = Inventory(None, {"gpu01": TWO.hosts["gpu01"]})

GOOD = """\
name: lab
models:
  - name: qwen
    model: /models/q
    engine: mocker
"""


def deployment_errors(text: str, inventory: Inventory = TWO) -> list[str]:
    """The problems of a deployment file called d.yaml, [] when it is fine."""
    try:
        parse_deployment(text, inventory, Path("d.yaml"))
    except SpecError as error:
        return str(error).split("\n")
    return []


def inventory_errors(text: str, path: Path = Path("h.yaml")) -> list[str]:
    """The problems of an inventory file, [] when it is fine."""
    try:
        parse_inventory(text, path)
    except SpecError as error:
        return str(error).split("\n")
    return []
