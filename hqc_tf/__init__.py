"""Image search without labels: an encoder and its PQ codebooks, learned together."""

import importlib
import os
import sys
from typing import Any

from hqc_tf import _keras2

# TensorFlow reads all of these when it loads; the caller's own values stay.
# TensorFlow leaves oneDNN's convolutions off on CPUs without AVX-512, where they train twice as
# fast as its own (docs/train.md, "Exact repeats").
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# While Python locates the module of `python -m`, argv[0] is "-m": only commands are quiet. Below 3,
# TensorFlow prints three lines about CUDA libraries registered twice at each start.
if sys.argv[0] == "-m":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_keras2.take_keras_2()

# Public name -> module that has it, imported on first use: TensorFlow takes seconds to import.
_FACE = {
    "Config": "config",
    "HQC": "model",
    "ProductQuantizer": "quantizer",
    "load": "workdir",
    "load_images": "data.catalog",
    "train_and_evaluate": "train",
}
__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
