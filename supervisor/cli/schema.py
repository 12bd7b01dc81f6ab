"""`noray schema`: what may stand in the two files."""

from __future__ import annotations

import argparse

from supervisor.cli.common import write
from supervisor.spec.schema import schema_text


def run(args: argparse.Namespace) -> int:
    write(schema_text())
    return 0
