"""Measurements: each prints its table, with the command and the hardware beside it."""

import hqc_tf  # noqa: F401 - sets TensorFlow's environment before a module here loads it
