"""A worker that is one of `benchmarks/stub.py`, prints numbered lines, and keeps the book of its lives outside of noray.

    mortal.py FOLDER etcd|frontend|worker [ARGUMENTS OF THE REAL ONE…]

Each life adds "RUN PID" to FOLDER/../lives/PROCESS, which all hosts of a bed see, and holds a lock on it while it lasts: who
finds that lock held writes "TWO" instead. SIGUSR1 ends it with exit code 0. For any Python from 3.9 on.
"""

import fcntl
import os
import runpy
import signal
import sys
import threading
import time

STUB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "benchmarks", "stub.py")
LINE_S = 0.02


def main():
    folder, role = sys.argv[1:3]
    stub = runpy.run_path(STUB)
    if role != "worker":
        return stub["main"]()
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    process, run = os.readlink("/proc/self/fd/1").split("/")[-3:-1]
    book = os.path.join(folder, "..", "lives", process)
    file = open(book, "a")  # noqa: SIM115 - its lock lasts as long as we do
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        run = "TWO"
    file.write(f"{run} {os.getpid()}\n")
    file.flush()
    forget(folder, book + ".id")
    env = os.environ
    worker = stub["Worker"](folder, f"{env['DYN_TCP_RPC_HOST']}:{env['DYN_TCP_RPC_PORT']}")
    with open(book + ".id", "w") as kept:
        kept.write(str(worker.id))
    threading.Thread(target=talk, daemon=True).start()
    return stub["serve"](f"{env['DYN_SYSTEM_HOST']}:{env['DYN_SYSTEM_PORT']}", worker)


def forget(folder, before):
    """The instance of the life before this one, as etcd forgets one whose lease is revoked."""
    try:
        with open(before) as kept:
            name = os.path.join(folder, kept.read())
        os.unlink(name)
        os.unlink(name + ".done")
    except OSError:
        pass


def talk():
    number = 0
    while True:
        number += 1
        os.write(1, b"%d\n" % number)
        time.sleep(LINE_S)


if __name__ == "__main__":
    main()
