import numpy as np
import pytest

from export import kept
from hqc_tf.errors import UserError


def test_int8_by_hand():
    rows = kept.pack(np.float32([[127, -254, 1], [0, 0, 0]]), "int8")
    scale = np.float32(2).tobytes()
    values = np.int8([64, -127, 0]).tobytes()  # 63.5 and 0.5, to even
    assert rows.tobytes() == scale + values + bytes(7)
    np.testing.assert_array_equal(kept.unpack(rows, "int8"), [[128, -254, 0], [0, 0, 0]])


def test_float16_by_hand():
    rows = kept.pack(np.float32([[1, 0.1]]), "float16")
    assert rows.tobytes() == np.float16([1, 0.1]).tobytes()
    np.testing.assert_array_equal(kept.unpack(rows, "float16"), np.float32(np.float16([[1, 0.1]])))


@pytest.mark.parametrize(("keep", "part"), [("int8", 1 / 250), ("float16", 1 / 2000)])
def test_what_is_kept_is_near_and_as_long_as_said(keep, part):
    embeddings = np.random.default_rng(0).normal(size=[50, 24]).astype(np.float32)
    embeddings *= np.logspace(-4, 3, 50, dtype=np.float32)[:, None]
    rows = kept.pack(embeddings, keep)
    assert rows.dtype == np.uint8 and rows.shape == (50, kept.row_bytes(keep, 24))
    error = np.abs(kept.unpack(rows, keep) - embeddings)
    assert (error <= part * np.abs(embeddings).max(1, keepdims=True)).all()


@pytest.mark.parametrize("keep", ["int8", "float16"])
def test_what_is_not_finite_is_refused(keep):
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match=f"--keep={keep}: an embedding holds NaN or infinity"):
            kept.pack(np.float32([[1, value]]), keep)


def test_numbers_beyond_float16_are_refused():
    with pytest.raises(UserError, match=r"--keep=float16: an embedding has 1e\+06, over 65504"):
        kept.pack(np.float32([[1, -1e6]]), "float16")
