"""Which TensorFlow and Keras run this: the one module that asks for their versions.

The code is written to Keras 2's API. TensorFlow up to 2.15 brings it as `keras`; later ones bring
Keras 3 and take Keras 2 from the package `tf_keras` where TF_USE_LEGACY_KERAS says so.
"""

import importlib.machinery
import os
import sys

_SWITCH = "TF_USE_LEGACY_KERAS"
_MEND = "pip install -r requirements-tf220.txt, or requirements.txt on Python 3.11"


def take_keras_2():
    """Has TensorFlow take Keras 2, whichever of its packages is there; loads neither.

    Raises:
      ImportError: there is only Keras 3, the environment asks for another than there is, or the
        caller has loaded Keras 3 through TensorFlow.
    """
    has_tf_keras = _find("tf_keras") is not None
    if has_tf_keras:
        os.environ.setdefault(_SWITCH, "1")
    said = os.environ.get(_SWITCH)
    # The values that TensorFlow takes for a yes.
    switched = said in ("1", "true", "True")
    if switched and not has_tf_keras:
        raise ImportError(
            f"{_SWITCH}={said}: asks for the package tf_keras, which is not here; unset it, or "
            "pip install -r requirements-tf220.txt"
        )
    if not switched and _keras_is_3():
        told = f"{_SWITCH}={said}" if has_tf_keras else "tf_keras is not installed"
        mend = "unset it, or set it to 1" if has_tf_keras else _MEND
        raise ImportError(
            f"{told}: TensorFlow would take Keras 3, and this is written for Keras 2; {mend}"
        )
    loaded = sys.modules.get("tensorflow")
    # Keras 2's layers are modules of TensorFlow, those of Keras 3 are not.
    if loaded is not None and not issubclass(loaded.keras.layers.Layer, loaded.Module):
        raise ImportError(
            "tf.keras is Keras 3 already, and this is written for Keras 2; import hqc_tf before "
            f"what uses tf.keras, or set {_SWITCH}=1"
        )


def versions():
    """The versions of TensorFlow and of the Keras that it takes: dict of "tensorflow", "keras"."""
    # Not at the top: importing hqc_tf is to take no time.
    import importlib.metadata

    keras = "tf_keras" if os.environ.get(_SWITCH) else "keras"
    return {
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version(keras),
    }


def _keras_is_3():
    found = _find("keras")
    # The part of Keras 3 that TensorFlow asks for.
    return bool(found) and _find("_tf_keras", found.submodule_search_locations) is not None


# Finds without an import; importlib.util would take longer to load than all of hqc_tf.
_find = importlib.machinery.PathFinder.find_spec
