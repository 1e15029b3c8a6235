"""A line on the terminal that says how far a long command is."""

import sys
import time

# Between two changes of the line.
SECONDS = 0.2


class Progress:
    """Shows images, images/s and the time left on stderr, if that is a terminal; a context.

    Args:
      total: images there will be; None where nobody knows.
    """

    def __init__(self, total):
        self._total, self._count = total, 0
        self._began = self._shown = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._count and sys.stderr.isatty():
            self._show(time.monotonic())
            print(file=sys.stderr)

    def add(self, count):
        """Counts images that are done."""
        self._count += count
        now = time.monotonic()
        if now - self._shown > SECONDS and sys.stderr.isatty():
            self._shown = now
            self._show(now)

    def _show(self, now):
        rate = self._count / max(now - self._began, 1e-9)
        text = f"{self._count} images, {rate:.0f}/s"
        if self._total is not None:
            left = (self._total - self._count) / rate
            text = f"{self._count} of {self._total} images, {rate:.0f}/s, {describe(left)} left"
        # What a longer line before has left at the end is cleared.
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def describe(seconds):
    """A time as people say it: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
