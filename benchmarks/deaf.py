"""A tree that no SIGTERM ends: a leader, its child, and a grandchild that left session and parents. Usage: deaf.py MARK"""

import os
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:  # the child
    while True:
        signal.pause()
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:  # the grandchild
        while True:
            signal.pause()
    os._exit(0)
os.waitpid(middle, 0)
while True:
    signal.pause()
