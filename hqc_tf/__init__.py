"""Image search without labels: an encoder and its PQ codebooks, learned together."""

import os
import sys

from hqc_tf import _keras2

# TensorFlow reads all of these when it loads; the caller's own values stay.
# TensorFlow leaves oneDNN's convolutions off on CPUs without AVX-512, where they train twice as
# fast as its own (BUILD.md, "Speed on a CPU").
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# While Python locates the module of `python -m`, argv[0] is "-m": only commands are quiet. Below 3,
# TensorFlow prints three lines about CUDA libraries registered twice at each start.
if sys.argv[0] == "-m":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_keras2.take_keras_2()
