"""`noray demo`: the whole product on this machine, in a directory that is gone afterwards."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    from supervisor.demo import demo

    return demo.run(keep=args.keep)
