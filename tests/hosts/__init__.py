"""Machines of our own, in namespaces. bed.py makes several, host.py is one, wire.py leads to it, init.py is its PID 1."""
