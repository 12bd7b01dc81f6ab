"""`python -m tests.chaos`: random scenarios, each from its seed, judged from outside. Needs root."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import room
from tests.chaos import run
from tests.chaos.oracle import END_STATES
from tests.chaos.run import RESTORED, Outcome
from tests.hosts.bed import missing_tools

MOST_NAMED = 0.05  # of all scenarios may end in a named end state


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--count", type=int, default=200, help="so many scenarios (default 200)")
    parser.add_argument("--seed", type=int, action="append", metavar="N", help="this one, and only those given")
    parser.add_argument("--first", type=int, metavar="N", help="the first of COUNT seeds in a row (default: drawn, and said)")
    parser.add_argument("--real", action="store_true", help="real etcd, frontend and mockers instead of stubs")
    parser.add_argument("--jobs", type=int, default=1, help="so many worlds at once (default 1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what shows why, where something was violated")
    args = parser.parse_args()
    first = random.SystemRandom().randrange(10**6) if args.first is None else args.first
    seeds = args.seed or list(range(first, first + args.count))
    if room.INSIDE in os.environ:
        return inside(seeds, args.real, args.keep)
    if not room.possible() or missing_tools("nft"):
        print(f"chaos needs root, for hosts and rooms of its own {missing_tools('nft')}", file=sys.stderr)
        return 2
    shares = [seeds[n :: args.jobs] for n in range(args.jobs)]
    with ThreadPoolExecutor(args.jobs) as pool:
        return max(pool.map(lambda share: enter(share, args.real, args.keep), filter(None, shares)))


def enter(seeds: list[int], real: bool, keep: Path | None) -> int:
    """Play these in a room of their own."""
    words = [word for seed in seeds for word in ("--seed", str(seed))]
    words += ["--real"] if real else []
    words += ["--keep", str(keep.absolute())] if keep else []
    return room.run([sys.executable, "-m", "tests.chaos", *words])


def inside(seeds: list[int], real: bool, keep: Path | None) -> int:
    outcomes: list[Outcome] = []
    began = time.monotonic()

    def told(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(outcome, flush=True)

    run.scenarios(seeds, real=real, told=told, keep=keep)
    words = Counter("VIOLATION" if outcome.violations else outcome.word for outcome in outcomes)
    settling = sorted(outcome.settled_s for outcome in outcomes)
    middle, most = settling[len(settling) // 2], settling[-1]
    print(
        f"\n{len(outcomes)} scenarios in {time.monotonic() - began:.0f} s; settling: {middle:.1f} s median, {most:.1f} s most"
    )
    for word, count in words.most_common():
        print(f"  {count:4} {word}")
    named = sum(count for word, count in words.items() if word not in (RESTORED, "VIOLATION"))
    if named > MOST_NAMED * len(outcomes):
        print(f"{named} ended in a named end state ({'; '.join(END_STATES)}): more than {MOST_NAMED:.0%}")
    return int(bool(words["VIOLATION"]) or named > max(1, MOST_NAMED * len(outcomes)))


if __name__ == "__main__":
    sys.exit(main())
