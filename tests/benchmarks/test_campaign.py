"""The campaign's own parts: what it counts, and the instants at which it stops a command."""

import json

import numpy as np
import pytest

from benchmarks.campaign import servers
from benchmarks.campaign.__main__ import table
from benchmarks.campaign.instants import Instants, files_of_at_most, spread
from benchmarks.campaign.row import Row, in_time, must


def test_every_state_that_a_kill_could_leave_is_found(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "file").write_text("old")
    (tmp_path / "other").mkdir()
    instants = Instants(folder, tmp_path / "copies")
    with instants.watching():
        (folder / ".file").write_text("new one")
        (tmp_path / "other/file").write_text("elsewhere")
        (folder / ".file").rename(folder / "file")
        (folder / "late").write_text("abcd")
    (folder / "not watched").touch()
    found = [{path.name: path.read_text() for path in copy.iterdir()} for copy in instants.found]
    assert found == [
        {"file": "old", ".file": "new"},
        {"file": "old", ".file": "new one"},
        {"file": "new one"},
        {"file": "new one", "late": "ab"},
        {"file": "new one", "late": "abcd"},
    ]


def test_points_are_spread_over_all():
    assert spread([*range(9)], 3) == [0, 4, 8]
    assert spread([1, 2], 3) == spread([1, 2], 0) == [1, 2]


def test_a_file_grows_no_further(tmp_path):
    with files_of_at_most(3), pytest.raises(OSError, match="File too large"):
        (tmp_path / "file").write_bytes(b"abcd")
    (tmp_path / "file").write_bytes(b"abcd")


def test_cases_are_counted_and_any_error_fails_one():
    row = Row("an attack")
    for error in (None, ValueError("two\nlines"), SystemExit(1)):
        with row.case("case"):
            if error:
                raise error
    with row.case("rule"):
        must(False, lambda: "why")
    other = Row("part", 1, 0, 2000.0, 0.5)
    row.add(other)
    assert (row.tried, row.failed) == (5, 3)
    assert row.failures[0] == "case: ValueError: two lines"
    assert row.failures[2] == "rule: AssertionError: why"
    assert row.worst_mib == 2000.0
    assert table([row]).splitlines()[2].startswith("| an attack | 5 | 3 | 2000 | ")
    assert list(in_time([1, 2], 0)) == []
    row.bound(2000, 600)
    assert row.failed == 3
    row.bound(1999, 600)
    assert row.failed == 4 and row.failures[-1] == "a case took over 1999 MiB or 600 s"


def test_answers_follow_from_the_seed_and_are_of_many_forms():
    texts = [servers.malformed(np.random.default_rng(seed)) for seed in range(60)]
    assert texts == [servers.malformed(np.random.default_rng(seed)) for seed in range(60)]
    assert len(set(texts)) > 40 and json.dumps({"outputs": servers.GOOD}).encode() not in texts
