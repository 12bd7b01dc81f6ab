"""The JSON schema of both files, for editors and for the verb `noray schema`.

`python -m supervisor.spec.schema > inventory/schema.json` renews the checked-in copy; a test fails when it is stale.
Names clashing, hosts unknown and files missing are beyond a schema: `noray plan` tells.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic.json_schema import models_json_schema

from supervisor.spec.deployment import Deployment
from supervisor.spec.inventory import InventoryFile


def schema() -> dict[str, Any]:
    """One schema that either file satisfies; `$defs` has `Deployment` and `InventoryFile`."""
    _, both = models_json_schema([(Deployment, "validation"), (InventoryFile, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "noray: deployment.yaml or hosts.yaml",
        "anyOf": [{"$ref": "#/$defs/Deployment"}, {"$ref": "#/$defs/InventoryFile"}],
        "$defs": _without_nulls(both["$defs"]),
    }


def schema_text() -> str:
    """The schema as the text of `inventory/schema.json`."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"


def _without_nulls(node: Any) -> Any:
    # `default: null` is how a default looks that a validator fills in; to a reader of the schema it is noise.
    if isinstance(node, dict):
        return {k: _without_nulls(v) for k, v in node.items() if not (k == "default" and v is None)}
    if isinstance(node, list):
        return [_without_nulls(v) for v in node]
    return node


if __name__ == "__main__":
    sys.stdout.write(schema_text())
