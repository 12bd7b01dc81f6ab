"""A file with other numbers of replicas than it says. Before it is checked: one that does not fit is refused like its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from supervisor.spec.document import Document

FRONTEND = "frontend"


def scaled(document: Document, replicas: Mapping[str, int]) -> Document:
    """`replicas`: of models by name, and of the frontend. What is not in the file is passed over."""
    data = document.data
    if not replicas or not isinstance(data, dict):
        return document
    models, frontend = data.get("models"), data.get(FRONTEND) or {}
    if isinstance(models, tuple):
        data = {**data, "models": tuple(_with(model, replicas) for model in models)}
    if FRONTEND in replicas and isinstance(frontend, dict):
        data = {**data, FRONTEND: {**frontend, "replicas": replicas[FRONTEND]}}
    return replace(document, data=data)


def _with(model: object, replicas: Mapping[str, int]) -> object:
    if not isinstance(model, dict) or not isinstance(name := model.get("name"), str) or name not in replicas:
        return model
    return {**model, "replicas": replicas[name]}
