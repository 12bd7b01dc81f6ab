"""Verbs are loaded when they are asked for: each must be there, and the common ones must not load what they do not need."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys

import pytest

from supervisor.cli.args import parser

(VERBS,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_be_run(verb: str) -> None:
    assert callable(importlib.import_module(f"supervisor.cli.{VERBS[verb].get_default('verb_file')}").run)


@pytest.mark.parametrize("verb", ["status", "why", "stop", "start", "restart", "down"])
def test_who_asks_a_controller_loads_no_ssh_and_no_schema(verb: str) -> None:
    code = f"import sys; from supervisor.cli import {VERBS[verb].get_default('verb_file')}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"asyncssh", "pydantic", "httpx", "structlog"} & set(loaded)
