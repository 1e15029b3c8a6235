import sys

import pytest

from hqc_tf import progress


class Terminal:
    def __init__(self, is_terminal):
        self.text, self.isatty = "", lambda: is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def shown(monkeypatch, total, counts, is_terminal=True, seconds=2.0):
    """What stands on stderr when so many images are done, each count so many seconds later."""
    now, terminal = [100.0], Terminal(is_terminal)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.Progress(total) as line:
        for count in counts:
            now[0] += seconds
            line.add(count)
    return terminal.text.replace("\033[K", "").split("\r")[1:]


def test_it_shows_how_many_how_fast_and_how_long(monkeypatch):
    assert shown(monkeypatch, 1000, [100, 100, 800]) == [
        "100 of 1000 images, 50/s, 18 s left",
        "200 of 1000 images, 50/s, 16 s left",
        "1000 of 1000 images, 167/s, 0 s left",
        "1000 of 1000 images, 167/s, 0 s left\n",
    ]


def test_without_a_total_there_is_no_time_left(monkeypatch):
    assert shown(monkeypatch, None, [10]) == ["10 images, 5/s", "10 images, 5/s\n"]


def test_it_is_silent_elsewhere_and_does_not_flicker(monkeypatch):
    assert shown(monkeypatch, 1000, [100, 100], is_terminal=False) == []
    assert len(shown(monkeypatch, 1000, [1] * 30, seconds=0.05)) == 7
    assert shown(monkeypatch, 1000, []) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (12_000, "3 h 20 min")],
)
def test_times_as_people_say_them(seconds, text):
    assert progress.describe(seconds) == text
