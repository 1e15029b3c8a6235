"""Attacks on the whole product, repeated: `python -m benchmarks.campaign`."""
