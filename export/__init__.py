"""From a trained run to a served encoder, an index of codes, and answers to queries."""

import hqc_tf  # noqa: F401 - sets TensorFlow's environment before a module here loads it
