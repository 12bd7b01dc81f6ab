"""Stands for `python -m dynamo.…`: owns what it was given, so that everybody can see it.

It listens on every port of its environment and arguments, with SO_REUSEPORT: the kernel shall not hide from the watcher that
two were given one port. For each GPU of CUDA_VISIBLE_DEVICES it leaves <RIVALS_GPUS>/<gpu>/<its pid>. Its working
directory, which noray makes, ends with its deployment and its name.
"""

import os
import signal
import socket
import sys

PORTS = ("DYN_SYSTEM_PORT", "DYN_TCP_RPC_PORT", "DYN_TCP_RESPONSE_STREAM_PORT")

numbers = [int(os.environ[name]) for name in PORTS if name in os.environ]
if "--http-port" in sys.argv:
    numbers.append(int(sys.argv[sys.argv.index("--http-port") + 1]))
held = []
for number in numbers:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT of others' connections is no owner
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", number))
    sock.listen(1)
    held.append(sock)
for gpu in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
    folder = os.path.join(os.environ["RIVALS_GPUS"], gpu)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, str(os.getpid())), "w") as file:
        file.write("1000\n")  # MiB, for a fake NVML
while True:
    signal.pause()
