"""Replicas: which devices train, in what precision, and how each gets the batch of all."""

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from os import PathLike

import tensorflow as tf

from hqc_tf.errors import UserError

# A host, or an IPv6 address in brackets, and a port.
_ADDRESS = re.compile(r"(?:[^\s/:\[\]]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")
# A gain below this is noise, and not worth bfloat16's rounding.
_WORTHWHILE = 1.2


def make_strategy(name: str, tpu: str = "") -> tf.distribute.Strategy:
    """The tf.distribute strategy of `--strategy`.

    One of several machines or of a TPU must be made before TensorFlow does anything else.

    Args:
        name: "one_device"; "mirrored", every GPU of this machine, without any its logical CPUs;
            "multi_worker", the machines of TF_CONFIG; "tpu".
        tpu: name or address of the TPU; empty: that of this machine.

    Raises:
        UserError: TF_CONFIG is missing or does not describe a cluster with this worker, its port
            is in use, or there is no such TPU.
    """
    if name == "multi_worker":
        check_cluster(os.environ.get("TF_CONFIG", ""))
        return _workers_strategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in devices]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(names[0])
    return tf.distribute.MirroredStrategy(names)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one whose files count."""
    if not has_other_processes(strategy):
        return True
    resolver = strategy.cluster_resolver
    # Without a task of that name, the first worker is the chief.
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (chief, 0)


def has_other_processes(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes train with this one."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


@contextlib.contextmanager
def folder_to_save_in(strategy: tf.distribute.Strategy, folder: PathLike) -> Iterator[PathLike]:
    """`folder` for the chief, a temporary one for the others.

    Every process has to save, as reading some variables is an exchange between all.
    """
    if is_chief(strategy):
        yield folder
        return
    with tempfile.TemporaryDirectory() as aside:
        yield aside


def is_same_for_all(strategy: tf.distribute.Strategy, number: int) -> bool:
    """Whether all processes call this with the same int."""
    numbers = strategy.run(lambda: tf.constant([number], tf.int64))
    found = strategy.gather(numbers, axis=0).numpy()
    return bool((found == number).all())


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once all processes have called it."""
    if has_other_processes(strategy):
        is_same_for_all(strategy, 0)


def check_batch(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """UserError where the global batch does not divide by the replicas."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise UserError(
            f"--batch_size={batch_size}: does not divide by {replicas} replicas; take a multiple "
            f"such as {batch_size // replicas * replicas or replicas}"
        )


def check_cluster(text: str) -> None:
    """UserError where the text of TF_CONFIG is not what TensorFlow documents for workers.

    TensorFlow itself ends the process on an address that it cannot use.
    """
    say = "--strategy=multi_worker: TF_CONFIG"
    if not text:
        raise UserError(
            f'{say} is not set; give each process {{"cluster": {{"worker": ["host:port", ...]}}, '
            '"task": {"type": "worker", "index": N}}'
        )
    try:
        given = json.loads(text)
        cluster, task = given["cluster"], given["task"]
        kind, index = task["type"], int(task["index"])
        hosts = {name: [str(host) for host in cluster[name]] for name in cluster}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{say}={text}: not JSON with cluster and task ({error!r}); fix it as TensorFlow's "
            "guide to multi-worker training shows"
        ) from error
    if unknown := set(hosts) - {"chief", "worker"}:
        raise UserError(f"{say}: unknown tasks {sorted(unknown)}; take chief and worker")
    if kind not in ("chief", "worker") or not 0 <= index < len(hosts.get(kind, [])):
        raise UserError(
            f"{say}: task {kind} {index} is not in the cluster {hosts}; number each process "
            "from 0 among those of its type"
        )
    everyone = sum(hosts.values(), [])
    if len(set(everyone)) < len(everyone):
        raise UserError(f"{say}: an address occurs twice in {hosts}; give each process its own")
    ports = {host: _port(host, say) for host in everyone}
    _check_free(ports[hosts[kind][index]], say)


def _port(host, say):
    match = _ADDRESS.fullmatch(host)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise UserError(
            f"{say}: {host!r} is not an address; give host:port, without http://, and a port from "
            "1 to 65535"
        )
    return int(match[1])


def _check_free(port, say):
    with socket.socket() as server:
        # As TensorFlow does: the connections of a process that has ended do not matter.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{say}: port {port}, this process's own, cannot be taken ({error.strerror}); end "
                "the process that has it, or give another port to all processes"
            ) from error


def _workers_strategy():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # TensorFlow keeps SIGTERM from ending a process that has others, for a protocol of its own.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def _tpu_strategy(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name or "local")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0].split(" used by ")[0]
        raise UserError(
            f"--strategy=tpu --tpu={name}: no TPU answers ({reason}); run on a TPU VM, or give "
            "its name"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def gather_batch(tensors: list[tf.Tensor]) -> tuple[list[tf.Tensor], int | tf.Tensor]:
    """What all replicas hold of some tensors, in one exchange.

    Call it inside `strategy.run` (as `train_step` is), with tensors of the same shapes in each
    replica. The gradients that come back to a replica's rows are summed over replicas.

    Args:
        tensors: list of float [b, ...], one dtype.

    Returns:
        The tensors of the global batch, float [B, ...], and the row at which this replica's begin.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors, 0
    known = tensors[0].shape[0]
    rows = tf.shape(tensors[0])[0] if known is None else known
    flat = tf.concat([tf.reshape(t, [rows, -1]) for t in tensors], 1)
    everyone = context.all_gather(flat, axis=0)
    # TensorFlow forgets how many rows there are, and XLA has to know.
    everyone.set_shape([known and known * context.num_replicas_in_sync, flat.shape[1]])
    pieces = tf.split(everyone, [t.shape[1:].num_elements() for t in tensors], axis=1)
    gathered = [tf.reshape(p, [-1, *t.shape[1:]]) for p, t in zip(pieces, tensors, strict=True)]
    return gathered, context.replica_id_in_sync_group * rows


def gains_from_bfloat16() -> bool:
    """Whether convolutions train faster here in bfloat16 than in float32, found by trying.

    CPUs with AMX and newer GPUs do; CPUs without emulate it, or have no kernel at all.
    """
    try:
        return _convolution_seconds(tf.float32) > _WORTHWHILE * _convolution_seconds(tf.bfloat16)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError, tf.errors.InternalError):
        return False


def _convolution_seconds(dtype):
    """Shortest time of a convolution, forward and backward, of a few tries."""
    images = tf.ones([64, 32, 32, 32], dtype)
    kernel = tf.ones([3, 3, 32, 32], dtype)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            total = tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME"))
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(total, [images, kernel])]

    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        [total.numpy() for total in train()]
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
