"""Chaos: random faults over hosts of our own, judged from outside. `python -m tests.chaos --help`."""
