"""Replicas learn what one learns: of one process, and of two that talk to each other."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kill_test, machine
from hqc_tf import distribute
from hqc_tf.errors import UserError
from hqc_tf.workdir import read_epochs
from tests.support import ROOT, replicas


def start(datasets, output, *names, **environment):
    command = [sys.executable, "tests/support/replicas.py", datasets, str(output), *names]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    for process in processes:
        try:
            _, said = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, said


def start_workers(datasets, output):
    """Two processes that train together, in the way TensorFlow documents."""
    hosts = [f"127.0.0.1:{port}" for port in machine.free_ports(2)]
    return [
        start(
            datasets,
            output,
            "multi_worker",
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def trained(photos, features, tmp_path_factory):
    """Folder by strategy of what tests/support/replicas.py leaves."""
    folder = tmp_path_factory.mktemp("replicas")
    datasets = f"folder:{photos},{features}"
    alone = [start(datasets, folder, name) for name in ("one_device", "mirrored")]
    finish(*alone, *start_workers(datasets, folder))
    return {name: folder / name for name in ("one_device", "mirrored", "multi_worker")}


def weights(folder):
    """Name to array of the weights that a run ended with, running statistics among them."""
    found = kill_test.arrays(folder / "checkpoints/last")
    return {n: value for n, value in found.items() if n.startswith(("encoder", "quantizer"))}


@pytest.mark.parametrize(
    ("strategy", "precision", "most"),
    [
        ("mirrored", "float64", 1e-10),
        ("multi_worker", "float64", 1e-10),
        ("mirrored", "float32", 1e-4),
    ],
)
@pytest.mark.long
def test_two_replicas_learn_what_one_learns(trained, strategy, precision, most):
    one, two = (weights(trained[name] / precision) for name in ("one_device", strategy))
    # The network of features has 10.
    assert one.keys() == two.keys() and len(one) > (10 if precision == "float64" else 9)
    for name, value in one.items():
        assert value.dtype == two[name].dtype == np.dtype(precision)
        np.testing.assert_allclose(two[name], value, rtol=0, atol=most, err_msg=name)


@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
@pytest.mark.long
def test_the_losses_shown_are_those_of_the_whole_batch(trained, strategy):
    one, two = (read_epochs(trained[name] / "float64") for name in ("one_device", strategy))
    assert len(one) == len(two) == replicas.SETTINGS["epochs"]
    assert len(one[0].losses) == 8  # the loss and all seven terms
    for name in one[0].losses:
        found, expected = ([line.losses[name] for line in lines] for lines in (two, one))
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
    assert one[-1].losses["loss"] < one[0].losses["loss"]


@pytest.mark.long
def test_workers_leave_the_files_of_one_run(trained):
    one, two = (
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (trained["one_device"] / "float64", trained["multi_worker"] / "float64")
    )
    events = "/events."
    assert [name for name in two if events not in name] == [
        name for name in one if events not in name
    ]
    lines = (trained["multi_worker"] / "float64/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["weights"] for line in lines] == ["last", "best"]


@pytest.mark.long
def test_replicas_killed_go_on_to_the_bit(trained):
    """Also the running statistics that each replica has for itself."""
    whole, interrupted = (trained["mirrored"].parent / name for name in ("whole", "interrupted"))
    assert len(read_epochs(whole)) == 2
    for kind in ("state", "last", "best"):
        one, two = (kill_test.arrays(run / "checkpoints" / kind) for run in (whole, interrupted))
        assert one.keys() == two.keys() and len(one) > 10
        for name, value in one.items():
            np.testing.assert_array_equal(two[name], value, err_msg=f"{kind} {name}")
    assert read_epochs(whole) == read_epochs(interrupted)


@pytest.fixture(scope="module")
def gathered(trained):
    with np.load(trained["mirrored"] / "gathered.npz") as arrays:
        return dict(arrays)


@pytest.mark.long
def test_each_replica_gets_the_rows_of_all(gathered):
    rows = np.arange(48).reshape(4, 2, 6)
    np.testing.assert_array_equal(gathered["deep"], [rows, rows])
    np.testing.assert_array_equal(gathered["flat"], [rows[:, 0], rows[:, 0]])


@pytest.mark.long
def test_offset_is_where_a_replicas_rows_begin(gathered):
    np.testing.assert_array_equal(gathered["offset"], [0, 2])


@pytest.mark.long
def test_gradients_come_back_from_all_replicas(gathered):
    np.testing.assert_array_equal(gathered["flat_gradient"], np.full([2, 2, 6], 3))
    np.testing.assert_array_equal(gathered["deep_gradient"], np.full([2, 2, 2, 6], 3))


def test_outside_of_replicas_everyone_is_oneself():
    tensors = [tf.ones([2, 3]), tf.zeros([2, 4, 5])]
    everyone, offset = distribute.gather_batch(tensors)
    assert everyone is tensors
    assert offset == 0


HOSTS = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "TF_CONFIG is not set; give each process"),
        ("{", "not JSON with cluster and task"),
        ({"cluster": HOSTS}, "not JSON with cluster and task"),
        ({"cluster": HOSTS, "task": {"type": "worker", "index": 2}}, "task worker 2 is not in"),
        ({"cluster": HOSTS, "task": {"type": "worker", "index": -1}}, "task worker -1 is not in"),
        ({"cluster": HOSTS, "task": {"type": "chief", "index": 0}}, "task chief 0 is not in"),
        ({"cluster": HOSTS | {"ps": ["c:1"]}, "task": {"type": "worker", "index": 0}}, "['ps']"),
        (
            {"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}},
            "an address occurs twice",
        ),
        *(
            ({"cluster": {"worker": [host]}, "task": {"type": "worker", "index": 0}}, said)
            for host, said in {
                "http://localhost:22222": "'http://localhost:22222' is not an address",
                "localhost": "give host:port, without http://, and a port from 1 to 65535",
                "localhost:": "is not an address",
                ":2222": "is not an address",
                "localhost:0": "is not an address",
                "localhost:65536": "is not an address",
                "localhost:http": "is not an address",
                "localhost :2222": "is not an address",
                "::1:2222": "is not an address",
                "a:1,b:2": "is not an address",
                "": "is not an address",
            }.items()
        ),
        ({"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}, "'a' is not an"),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused(monkeypatch, given, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if given is not None:
        text = given if isinstance(given, str) else json.dumps(given)
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="--strategy=multi_worker: TF_CONFIG") as error:
        distribute.make_strategy("multi_worker")
    assert said in str(error.value)


def test_an_own_port_that_is_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster = {"worker": ["a:1", f"[::1]:{port}"]}
        text = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}})
        with pytest.raises(UserError, match=f"port {port}, this process's own, .*in use.*; end"):
            distribute.check_cluster(text)
        # The ports of others are theirs.
        other = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})
        (free,) = machine.free_ports(1)
        distribute.check_cluster(other.replace("a:1", f"a:{free}"))
    distribute.check_cluster(text)


def test_sigterm_ends_a_worker():
    (port,) = machine.free_ports(1)
    cluster = {"worker": [f"127.0.0.1:{port}"]}
    alone = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})
    code = (
        "import time; from hqc_tf import distribute; distribute.make_strategy('multi_worker'); "
        "print('ready', flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TF_CONFIG": alone},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "ready\n"
    worker.send_signal(signal.SIGTERM)
    # It would sleep to its end, and end with 0.
    assert worker.wait(timeout=120) == -signal.SIGTERM


def test_a_batch_that_replicas_cannot_share_is_refused():
    three = type("Strategy", (), {"num_replicas_in_sync": 3})
    distribute.check_batch(three, 9)
    with pytest.raises(UserError, match="--batch_size=8: does not divide by 3 replicas; .* 6"):
        distribute.check_batch(three, 8)


def test_a_tpu_that_is_not_there_is_refused():
    command = [sys.executable, "-m", "hqc_tf.train", "--strategy=tpu", "--workdir=unmade"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: --strategy=tpu --tpu=: no TPU answers" in done.stderr
    assert not (ROOT / "unmade").exists()
