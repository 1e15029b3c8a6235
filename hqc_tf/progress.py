"""A line on the terminal that says how far a long command is, and nothing anywhere else."""

import sys
import time

# Between two changes of the line.
SECONDS = 0.2


class Progress:
    """Shows images, images/s and the time left on stderr, if that is a terminal; a context.

    Args:
      total: images there will be; None where nobody knows.
      label: what is done with them, or nothing.
      quiet: whether a terminal shows nothing either.

    Attributes:
      count: images that are done.
    """

    def __init__(self, total, label="", quiet=False):
        self._total, self._label, self.count = total, label and f"{label}: ", 0
        self._quiet = quiet or not sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.count and not self._quiet:
            self._show(time.monotonic())
            print(file=sys.stderr)

    def add(self, count):
        """Counts images that are done."""
        self.count += count
        now = time.monotonic()
        if now - self._shown > SECONDS and not self._quiet:
            self._shown = now
            self._show(now)

    def _show(self, now):
        rate = self.count / max(now - self._began, 1e-9)
        text = f"{self.count} images, {rate:.0f}/s"
        if self._total is not None:
            left = (self._total - self.count) / rate
            text = f"{self.count} of {self._total} images, {rate:.0f}/s, {describe(left)} left"
        _write(self._label + text)


def say(text, end="\n"):
    """Prints on stderr, in the place of the line if one stands there."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def describe(seconds):
    """A time as people say it: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _write(text):
    # What a longer line before has left at the end is cleared.
    print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
