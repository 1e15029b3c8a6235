"""Replicas: which devices train, and how each sees the batch of all."""

import tensorflow as tf


def make_strategy(name):
    """The tf.distribute strategy of `--strategy`: "one_device" or "mirrored".

    One device is a mirrored strategy of one, since Keras' BackupAndRestore supports no
    OneDeviceStrategy. Without a GPU, "mirrored" takes the logical CPUs.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in devices]
    return tf.distribute.MirroredStrategy(names[:1] if name == "one_device" else names)


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
