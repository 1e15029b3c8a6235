"""Image search without labels: an encoder and its PQ codebooks, learned together."""

import os

from hqc_tf import _keras2

# All are read when TensorFlow loads; what the caller has set stays.
# TensorFlow leaves oneDNN's convolutions off on CPUs without AVX-512, where they train twice as
# fast as its own (BUILD.md, "Speed on a CPU").
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Below 3, each start prints three lines about CUDA libraries registered twice; errors still raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_keras2.take_keras_2()
