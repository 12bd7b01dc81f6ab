"""A worker with the habits of a real one that a hardened service would forbid, before it serves as benchmarks/stub.py does.

    tenant.py STUB FOLDER worker [ARGUMENTS OF THE REAL ONE…]

In its cache, below HOME, it leaves what it could do: {"pid", "wrote", "executable", "gpu", "shm"}. Told to end it takes a
moment and exits 0; told twice, as by somebody else than its keeper too, 7.
"""

import json
import mmap
import os
import runpy
import signal
import sys
import time

END_S, HURRIED = 0.3, 7
HELD = f"/dev/shm/tenant-{os.getpid()}"


def tried(work):
    try:
        work()
    except OSError as error:
        return str(error)
    return "yes"


def executable():
    """As a JIT does it."""
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def shared():
    with open(HELD, "w") as file:
        file.write("weights")


def bye(*_):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(HURRIED))
    time.sleep(END_S)
    os.unlink(HELD)
    sys.exit(0)


def main():
    cache = os.path.join(os.environ["HOME"], ".cache", "tenant")
    os.makedirs(cache, exist_ok=True)
    found = {
        "pid": os.getpid(),
        "executable": tried(executable),
        "gpu": tried(lambda: os.close(os.open("/dev/nvidia0", os.O_RDWR))),
        "shm": tried(shared),
    }
    signal.signal(signal.SIGTERM, bye)
    with open(os.path.join(cache, f"{os.getpid()}.json"), "w") as file:
        json.dump(found, file)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
