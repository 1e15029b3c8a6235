"""Shards that a cluster of Dask makes, one of whose two workers is killed: those of one process."""

import pathlib
import re
import subprocess
import sys
import threading

import pytest

from tests.support import ROOT, commands

pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
pytest.importorskip("distributed", reason="dask[distributed] is not installed")


def begun(program, *arguments, line):
    """A process, once it has said `line`, and the match of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{program}", *arguments],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for said in process.stderr:
        if found := re.search(line, said):
            # Its pipe must not fill.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, found
    raise AssertionError(f"{program} ended with {process.wait()}")


@pytest.fixture(scope="module")
def cluster():
    """Address of a scheduler and the processes of its two workers."""
    quiet = "--no-dashboard", "--host=127.0.0.1", "--port=0"
    scheduler, found = begun("dask_scheduler", *quiet, line=r"Scheduler at:\s+(tcp://\S+)")
    started = [scheduler]
    try:
        for _ in range(2):
            own = found[1], "--no-nanny", "--nthreads=1", "--no-dashboard", "--host=127.0.0.1"
            started.append(begun("dask_worker", *own, line="Registered to")[0])
        yield found[1], started[1:]
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-of-*")}


def on_dask(address: str, *command: str) -> None:
    """Runs a command in a process of its own: Dask's client stays until its process ends."""
    flags = "--runner=dask", "--", f"--dask_client_address={address}"
    done = subprocess.run(
        [sys.executable, "-m", *command, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.long
def test_a_killed_worker_changes_no_file(cluster, encoder, photos, tmp_path):
    address, workers = cluster
    asked = f"--saved_model={encoder.path}", f"--input=folder:{photos}", "--num_shards=12"
    done = commands.run("export.encode", *asked, f"--output={tmp_path}/local")
    assert done.status == 0, done.stderr
    folder = tmp_path / "dask"

    def kill_after_a_shard():
        while workers[0].poll() is None:
            if len([*folder.glob("codes-*-of-*")]) > 1:
                workers[0].kill()
            threading.Event().wait(0.02)

    threading.Thread(target=kill_after_a_shard, daemon=True).start()
    on_dask(address, "export.encode", *asked, f"--output={folder}")
    assert workers[0].wait(60) != 0 and workers[1].poll() is None
    assert len(files_of(folder)) >= 12 and files_of(folder) == files_of(tmp_path / "local")

    # The features of a backbone, with the worker that is left.
    own = "--backbone_width=8", "--image_size=32", "--views=2"
    asked = f"--dataset=folder:{photos}", "--backbone=resnet18_cifar", *own
    done = commands.run("hqc_tf.embed", *asked, f"--output={tmp_path}/features")
    assert done.status == 0, done.stderr
    on_dask(address, "hqc_tf.embed", *asked, f"--output={tmp_path}/on_dask")
    assert workers[1].poll() is None
    assert files_of(tmp_path / "on_dask") == files_of(tmp_path / "features") != {}
