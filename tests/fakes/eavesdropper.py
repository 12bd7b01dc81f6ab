"""Everybody's command lines, every 50 ms: does a secret stand in one? Imports nothing of noray.

    python eavesdropper.py      the secret comes on stdin, whose end ends it: it must stand in no argv, ours neither

First it proves that it can see: it says "sees" once it has found a word that it planted. At its end it says how many looks it
took, and the command lines that held the secret: {"looks": 123, "heard": []}.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys

EVERY_S = 0.05


def lines() -> list[bytes]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    found.append(file.read())
            except OSError:
                pass  # it ended
    return found


def main() -> None:
    secret = os.read(0, 4096)
    planted = secrets.token_hex(16)
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()", planted], stdin=subprocess.PIPE) as bait:
        while not any(planted.encode() in line for line in lines()):
            pass
        bait.communicate(b"\n")
    print("sees", flush=True)
    looks, heard = 0, set[str]()
    while not select.select([0], [], [], EVERY_S)[0]:
        heard |= {line.decode(errors="replace") for line in lines() if secret in line}
        looks += 1
    print(json.dumps({"looks": looks, "heard": sorted(heard)}))


if __name__ == "__main__":
    main()
