"""The checked-in JSON schema follows the models."""

from __future__ import annotations

from pathlib import Path

from supervisor.spec.schema import schema, schema_text

FILE = Path(__file__).parents[2] / "inventory" / "schema.json"


def test_the_copy_is_not_stale() -> None:
    """When this fails: python -m supervisor.spec.schema > inventory/schema.json"""
    assert FILE.read_text(encoding="utf-8") == schema_text()


def test_it_knows_what_is_built_and_nothing_else() -> None:
    parts = schema()["$defs"]
    for name in ("Deployment", "InventoryFile", "Model", "HostKeys", "Etcd"):
        assert parts[name]["additionalProperties"] is False
    assert "loras" not in parts["Model"]["properties"]
    assert {"prefill", "decode", "name"}.isdisjoint(parts["Role"]["properties"])
    assert parts["Model"]["required"] == ["name", "model", "engine"]
    assert parts["Model"]["properties"]["replicas"]["minimum"] == 0
    assert parts["Model"]["properties"]["replicas"]["description"] == "an integer of at least 0 (and at most 10000)"
    assert parts["Defaults"]["properties"]["ports"]["type"] == "string"
    assert parts["Defaults"]["properties"]["ports"]["default"] == "18000-19999"
