"""Replicas: which devices train, in what precision, and how each sees the batch of all."""

import time

import tensorflow as tf

# A gain below this is noise, and not worth bfloat16's rounding.
_WORTHWHILE = 1.2


def make_strategy(name):
    """The tf.distribute strategy of `--strategy`: "one_device" or "mirrored".

    Without a GPU, "mirrored" takes the logical CPUs.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in devices]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(names[0])
    return tf.distribute.MirroredStrategy(names)


def gather_batch(tensors):
    """What all replicas hold of some tensors, in one exchange.

    Call it inside `strategy.run` (as `train_step` is), with tensors of the same shapes in each
    replica. Its gradient is right: what comes back to a replica's rows is summed over replicas.

    Args:
      tensors: list of float [b, ...], one dtype.

    Returns:
      (list of float [B, ...], offset): the tensors of the global batch, and the row at which this
      replica's begin.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors, 0
    rows = tf.shape(tensors[0])[0]
    flat = tf.concat([tf.reshape(t, [rows, -1]) for t in tensors], 1)
    widths = [t.shape[1:].num_elements() for t in tensors]
    pieces = tf.split(context.all_gather(flat, axis=0), widths, axis=1)
    gathered = [tf.reshape(p, [-1, *t.shape[1:]]) for p, t in zip(pieces, tensors, strict=True)]
    return gathered, context.replica_id_in_sync_group * rows


def gains_from_bfloat16():
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
