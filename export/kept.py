"""Embeddings kept beside codes, by which search tells images of equal codes apart.

An embedding [E] takes `row_bytes` bytes: as float16, or as int8 after the float32 number that
multiplies them, which is the largest magnitude of the embedding over 127.
"""

import numpy as np

from hqc_tf.errors import UserError

KINDS = ("none", "int8", "float16")
_LARGEST = 127
_SCALE = np.dtype("<f4")
_HALF = np.dtype("<f2")


def row_bytes(keep: str, width: int) -> int:
    """Bytes of an embedding of `width` numbers, kept as one of `KINDS`."""
    return {"none": 0, "int8": _SCALE.itemsize + width, "float16": _HALF.itemsize * width}[keep]


def pack(embeddings: np.ndarray, keep: str) -> np.ndarray:
    """Embeddings as they are kept, "int8" or "float16": float [n, E] -> uint8 [n, `row_bytes`].

    Raises:
        UserError: a number is not finite, or beyond float16.
    """
    embeddings = np.asarray(embeddings, np.float32)
    if not np.isfinite(embeddings).all():
        raise UserError(
            f"--keep={keep}: an embedding holds NaN or infinity, but must be finite; fix the input "
            "or take --keep=none"
        )
    if keep == "float16":
        with np.errstate(over="ignore"):
            halved = np.ascontiguousarray(embeddings, _HALF)
        if not np.isfinite(halved).all():
            most = np.abs(embeddings).max()
            raise UserError(f"--keep=float16: an embedding has {most:g}, over 65504; take int8")
        return halved.view(np.uint8)
    scales = np.abs(embeddings).max(axis=1, keepdims=True).astype(_SCALE) / np.float32(_LARGEST)
    # Zeros divided by zero.
    values = np.rint(embeddings / np.where(scales > 0, scales, 1)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), values.view(np.uint8)], axis=1)


def unpack(rows: np.ndarray, keep: str) -> np.ndarray:
    """What `pack` kept, but for its rounding: uint8 [n, `row_bytes`] -> float32 [n, E]."""
    rows = np.ascontiguousarray(rows)
    if keep == "float16":
        return rows.view(_HALF).astype(np.float32)
    scales = np.ascontiguousarray(rows[:, : _SCALE.itemsize]).view(_SCALE)
    return rows[:, _SCALE.itemsize :].view(np.int8) * scales.astype(np.float32)
