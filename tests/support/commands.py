"""Runs commands in this process as `python -m` would, hundreds where new processes are slow."""

from benchmarks.campaign.in_process import Done, run

__all__ = ["Done", "run"]
