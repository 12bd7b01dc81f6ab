"""noray beside its floors and peers, each pair in one run on one machine. `make bench`, or `python -m benchmarks --help`."""
