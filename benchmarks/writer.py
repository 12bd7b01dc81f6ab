"""Writes lines of 100 bytes to standard output at a steady rate. Usage: writer.py MB_PER_SECOND"""

import sys
import time

LINE = b"x" * 91 + b" log line"[:8] + b"\n"
RATE = float(sys.argv[1]) * 1e6
EVERY_S = 0.01
PIECE = LINE * max(1, round(RATE * EVERY_S / len(LINE)))
out = open(1, "wb", buffering=0)  # noqa: SIM115 - standard output as it is
due = time.monotonic()
while True:
    view = memoryview(PIECE)
    while view:
        view = view[out.write(view) :]
    due = max(due + len(PIECE) / RATE, time.monotonic() - 1.0)  # at most one second is made up for
    time.sleep(max(0.0, due - time.monotonic()))
