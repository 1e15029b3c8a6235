"""What one set of packages writes the other reads, both ways: runs, SavedModels and indexes."""

import os
import subprocess
import types

import numpy as np
import pytest

from benchmarks import kill_test
from hqc_tf.workdir import METRICS, read_epochs
from tests.support import ROOT

pytestmark = pytest.mark.long
PYTHON = {"tf215": ROOT / ".venv/bin/python", "tf220": ROOT / ".venv-tf220/bin/python"}
WAYS = [("tf215", "tf220"), ("tf220", "tf215")]
STEPS = 12


@pytest.fixture(scope="module")
def folders(photos, tmp_path_factory):
    """What each set wrote, by its name, and what each read of the other, by (writer, reader)."""
    for stack, python in PYTHON.items():
        if not python.exists():
            pytest.skip(f"no {python.relative_to(ROOT)}: `make setup STACK={stack}` makes it")
    written = {stack: tmp_path_factory.mktemp(stack) for stack in PYTHON}
    read = {way: tmp_path_factory.mktemp("-".join(way)) for way in WAYS}
    started = {
        way: start(way[1], photos, written[way[1]], written[way[0]], read[way]) for way in WAYS
    }
    try:
        for process in started.values():
            before = []
            for line in iter(process.stdout.readline, "written\n"):
                before.append(line)
                assert line, "".join(before)[-3000:]
        said = {}
        for way, process in started.items():
            said[way], _ = process.communicate("\n")
            assert process.returncode == 0, said[way][-3000:]
    finally:
        for process in started.values():
            process.kill()
    return types.SimpleNamespace(written=written, read=read, said=said)


def start(stack, *arguments):
    # Each set chooses its Keras by itself.
    own = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return subprocess.Popen(
        [PYTHON[stack], "tests/support/stacks.py", *arguments],
        cwd=ROOT,
        env=own | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_weights_saved_models_and_indexes_answer_alike(folders, way):
    own = load(folders.written[way[0]] / "answers.npz")
    other = load(folders.read[way] / "answers.npz")
    assert sorted(other) == sorted(own)
    for name, expected in own.items():
        if expected.dtype == np.float32:
            close = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(other[name], expected, rtol=0, atol=close, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], expected, err_msg=name)
    assert len(np.unique(own["indexed_codes"], axis=0)) > 10


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_state_is_restored_to_the_bit(folders, way):
    saved = kill_test.arrays(folders.written[way[0]] / "half/checkpoints/state")
    restored = load(folders.read[way] / "restored.npz")
    assert sum("optimizer" in name for name in saved) > 15
    assert sorted(restored) == sorted(saved)
    for name, expected in saved.items():
        np.testing.assert_array_equal(restored[name], expected, err_msg=name)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_run_begun_with_one_set_ends_with_the_other(folders, way):
    whole, gone_on = folders.written[way[0]] / "run", folders.read[way] / "half"
    assert f"resuming after step 10 of {STEPS}" in folders.said[way]
    assert (gone_on / METRICS).exists()
    lines = [read_epochs(folder) for folder in (whole, gone_on)]
    assert [[line.step for line in run] for run in lines] == [[STEPS // 2, STEPS]] * 2
    for one, other in zip(*lines, strict=True):
        np.testing.assert_allclose(other.losses["loss"], one.losses["loss"], rtol=1e-4)
