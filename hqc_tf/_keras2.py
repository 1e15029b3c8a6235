"""Makes TensorFlow use Keras 2; the only module that knows versions of TensorFlow and Keras.

The code is written for Keras 2's API. TensorFlow up to 2.15 has it as `keras`; later ones come with
Keras 3, and use Keras 2 from the package `tf_keras` where TF_USE_LEGACY_KERAS is set.
"""

import importlib.machinery
import os
import sys

_SWITCH = "TF_USE_LEGACY_KERAS"
_FIX = "pip install -r requirements-tf220.txt, or requirements.txt on Python 3.11"


def take_keras_2() -> None:
    """Makes TensorFlow use Keras 2 from whichever package has it; imports neither.

    Raises:
        ImportError: only Keras 3 is installed, the environment variable contradicts the installed
            packages, or the caller has loaded Keras 3 through TensorFlow.
    """
    has_tf_keras = _find("tf_keras") is not None
    if has_tf_keras:
        os.environ.setdefault(_SWITCH, "1")
    said = os.environ.get(_SWITCH)
    # The values that TensorFlow counts as true.
    switched = said in ("1", "true", "True")
    if switched and not has_tf_keras:
        raise ImportError(
            f"{_SWITCH}={said}: wants the package tf_keras, which is not installed; unset it, or "
            "pip install -r requirements-tf220.txt"
        )
    if not switched and _keras_is_3():
        told = f"{_SWITCH}={said}" if has_tf_keras else "tf_keras is not installed"
        fix = "unset it, or set it to 1" if has_tf_keras else _FIX
        raise ImportError(
            f"{told}: TensorFlow would take Keras 3, and this is written for Keras 2; {fix}"
        )
    loaded = sys.modules.get("tensorflow")
    # Keras 2's layers are modules of TensorFlow, those of Keras 3 are not.
    if loaded is not None and not issubclass(loaded.keras.layers.Layer, loaded.Module):
        raise ImportError(
            "tf.keras is Keras 3 already, and this is written for Keras 2; import hqc_tf before "
            f"what uses tf.keras, or set {_SWITCH}=1"
        )


def versions() -> dict[str, str]:
    """The versions of "tensorflow" and of the "keras" that it uses."""
    # Not at the top, so that importing hqc_tf stays quick.
    import importlib.metadata

    keras = "tf_keras" if os.environ.get(_SWITCH) else "keras"
    return {
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version(keras),
    }


def _keras_is_3():
    found = _find("keras")
    # The part of Keras 3 that TensorFlow imports.
    return bool(found) and _find("_tf_keras", found.submodule_search_locations) is not None


# Finds without importing; importlib.util takes longer to load than all of hqc_tf.
_find = importlib.machinery.PathFinder.find_spec
