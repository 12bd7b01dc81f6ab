"""`python -m benchmarks [NAME…]`: run them one after another, print a table each, and with --write keep them.

Never run as a test of speed: numbers of a machine that others use say little. `--quick` runs each in seconds, small, so that a
test sees that they still work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import adoption, cut, drift, fence, fleet, logs, machine, memory, recovery, room, stop

ALL = {"stop": stop, "memory": memory, "logs": logs, "fleet": fleet, "adoption": adoption, "drift": drift, "cut": cut}
ALL |= {"recovery": recovery, "fence": fence}
HEAD = """\
# Benchmarks

Each number stands beside its floor or its peer from the same run on the same machine: compare within a table, and
look at the ratios. `make bench` prints these tables for yours (`ARGS=memory` for one, `ARGS=--write=docs/benchmarks.md` to keep
them here).

"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="noray beside its floors and peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(ALL)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and short: to see that they work, not how fast noray is")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the tables here, with the machine")
    args = parser.parse_args()
    names = args.names or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(ALL)}")
    if room.INSIDE not in os.environ and room.possible():
        with tempfile.TemporaryDirectory(prefix="nb") as place:
            if "stop" in names:
                stop.prepare(Path(place), args.quick)
            return room.run([sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    return bench(names, args.quick, args.write)


def bench(names: list[str], quick: bool, write: Path | None) -> int:
    about = "\n".join(f"* {line}" for line in machine.describe()) + "\n"
    print(about, flush=True)
    parts = []
    for name in names:
        if ALL[name].NEEDS_ROOM and room.INSIDE not in os.environ:
            print(f"{name}: left out: {ALL[name].NEEDS_ROOM}\n", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as place:
            parts.append(ALL[name].run(Path(place), quick).markdown())
        print(parts[-1], flush=True)
    if write:
        command = f"Command: `python -m benchmarks {' '.join(sys.argv[1:])}`\n"
        write.write_text(HEAD + about + "\n" + command + "\n" + "\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
