"""Benchmarks, each beside a peer measured in the same run. They are not tests; `results/` has the figures and the machines."""
