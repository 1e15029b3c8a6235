"""What an attack found: a line of JSON, and a row of the table."""

import contextlib
import dataclasses
import faulthandler
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import machine

# An attack that takes so much longer than its share hangs.
_HANGS_SECONDS = 1200


@dataclasses.dataclass
class Row:
    """Counts of an attack.

    Attributes:
        attack: its name.
        tried: cases so far.
        failed: those that did not end as they must.
        worst_mib: the most memory that a case took beyond what was held before it.
        worst_seconds: the longest case, wall time.
        failures: the first ones, in words.
    """

    attack: str
    tried: int = 0
    failed: int = 0
    worst_mib: float = 0.0
    worst_seconds: float = 0.0
    failures: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def case(self, name: Any) -> Iterator[None]:
        """Counts and measures a case, which fails by any error."""
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = machine.memory_mib("VmRSS"), time.monotonic()
        self.tried += 1
        try:
            yield
        except (Exception, SystemExit) as error:
            self.fail(f"{name}: {type(error).__name__}: {error}")
        self.worst_seconds = max(self.worst_seconds, time.monotonic() - began)
        self.worst_mib = max(self.worst_mib, machine.memory_mib() - before)

    def add(self, other: "Row") -> None:
        """Adds the counts of a part of this attack."""
        self.tried += other.tried
        self.failed += other.failed
        self.worst_mib = max(self.worst_mib, other.worst_mib)
        self.worst_seconds = max(self.worst_seconds, other.worst_seconds)
        self.failures = [*self.failures, *other.failures][:5]

    def bound(self, most_mib: float, most_seconds: float) -> None:
        """Fails where a case took more."""
        if self.worst_mib > most_mib or self.worst_seconds > most_seconds:
            self.fail(f"a case took over {most_mib:.0f} MiB or {most_seconds:g} s")

    def fail(self, why: str) -> None:
        """Counts a failure."""
        self.failed += 1
        self.failures = [*self.failures, " ".join(why.split())[:500]][:5]


def in_time(cases: Iterator[Any] | list, ends: float) -> Iterator[Any]:
    """The cases that begin before `ends`, of `time.monotonic`."""
    for case in cases:
        if time.monotonic() > ends:
            return
        yield case


def must(condition: object, why: str | Callable[[], str]) -> None:
    """Raises AssertionError(why) unless `condition` holds."""
    if not condition:
        raise AssertionError(why() if callable(why) else why)


def watched(
    attack: Callable[..., Row], folder: pathlib.Path, seed: int, count: int, seconds: float
) -> Row:
    """Runs an attack for so many seconds at most, in this process, which ends where it hangs."""
    faulthandler.dump_traceback_later(seconds + _HANGS_SECONDS, exit=True)
    return attack(folder, seed, count, time.monotonic() + seconds)
