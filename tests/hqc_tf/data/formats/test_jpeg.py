"""JPEG files of many scans."""

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf.data import decoding
from hqc_tf.data.formats import jpeg
from tests.support.pixels import encode

decode_image = tf.function(
    decoding.decode_image, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)


def with_scans(photo, count):
    """A progressive JPEG in gray, the last of its scans repeated."""
    contents = encode(photo, "JPEG", mode="L", progressive=True)
    last, found = contents.rindex(b"\xff\xda"), contents.count(b"\xff\xda")
    return contents[:-2] + contents[last:-2] * (count - found) + b"\xff\xd9"


@pytest.mark.parametrize("count", [jpeg.MAX_SCANS + 1, 1000])
def test_more_scans_than_an_encoder_writes_are_refused(photo, count):
    contents = with_scans(photo, count)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(contents))
    assert decoding.why_refused(contents) == "JPEG of over 100 scans"


def test_scans_are_counted_wherever_a_window_ends(photo, monkeypatch):
    contents = encode(photo, "JPEG", progressive=True)
    expected = contents.count(b"\xff\xda")
    assert expected == 10
    for window in (7, 100, len(contents) - 1, len(contents)):
        monkeypatch.setattr(jpeg, "_WINDOW", window)
        assert jpeg._count_scans(tf.constant(contents)) == expected


def test_what_follows_the_image_counts_for_nothing(photo):
    """A phone's film after the photo, in which FF DA occurs as often as anything."""
    contents = encode(photo, "JPEG", subsampling=0)
    film = np.random.default_rng(0).bytes(2**20) + b"\xff\xda" * 500
    image = decode_image(tf.constant(contents + film))
    np.testing.assert_array_equal(image, decode_image(tf.constant(contents)))
