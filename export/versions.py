"""Numbered versions of SavedModels as TensorFlow Serving watches them, and their warm-up requests.

A version appears complete or not at all. The server runs the warm-up requests when it loads one.
"""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike

import numpy as np
import tensorflow as tf

from hqc_tf.errors import UserError

# TensorFlow Serving's name for the file, and its place in a SavedModel.
REQUESTS = "assets.extra/tf_serving_warmup_requests"
# Number of images, height and width of each warm-up request.
WARMUP_SHAPES = ((1, 32, 32), (1, 480, 640), (8, 240, 320))


def versions(output: str | PathLike) -> list[int]:
    """The versions under `output`."""
    names = [path.name for path in pathlib.Path(output).glob("*") if path.is_dir()]
    return [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]


def newest(path: str | PathLike) -> pathlib.Path:
    """The folder of the newest version under `path`, or `path` itself where there is none."""
    path = pathlib.Path(path).resolve()
    found = versions(path)
    return path / str(max(found)) if found else path


def free_version(output: str | PathLike, number: int | None = None) -> int:
    """The version to write: `number`, or the next where it is None.

    Raises:
        UserError: `output` is a file, or version `number` exists.
    """
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: a file, but versions need a folder; name another")
    if number is None:
        return max(versions(output), default=0) + 1
    if (output / str(number)).exists():
        raise UserError(
            f"--version={number}: exists in {output}, and a server may read it; give another "
            "number, or none for the next"
        )
    return number


@contextlib.contextmanager
def new_version(output: str | PathLike, number: int) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which becomes version `number` when the block ends without error."""
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    # TensorFlow Serving looks only at folders whose name is a number.
    aside = output / f".{number}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        aside.rename(output / str(number))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_warmup(
    folder: pathlib.Path, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> None:
    """Writes the warm-up requests of a SavedModel, a TFRecord of PredictionLog.

    Args:
        folder: of the SavedModel.
        requests: pairs of signature and inputs, at most 1,000 (TensorFlow Serving's limit).
    """
    # Only a writer of SavedModels needs the package.
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    path = folder / REQUESTS
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(signature_name=signature),
                inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
            )
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def pixel_batches() -> list[np.ndarray]:
    """Images as clients send them decoded: [B, H, W, 3] uint8 of each of `WARMUP_SHAPES`."""
    return [
        np.stack([_picture(height, width, turn) for turn in range(count)])
        for count, height, width in WARMUP_SHAPES
    ]


def file_batches() -> list[np.ndarray]:
    """The same images as JPEG and PNG files, in turns: [B] object, of bytes."""
    return [np.array([*map(_encode, range(len(b)), b)], object) for b in pixel_batches()]


def _encode(turn, picture):
    encode = (tf.io.encode_jpeg, tf.io.encode_png)[turn % 2]
    return encode(picture).numpy()


def _picture(height, width, turn):
    """Soft waves of color, which compress well; [H, W, 3] uint8."""
    y, x, channel = np.ogrid[0 : 6 : height * 1j, 0 : 6 : width * 1j, 0:3]
    return np.uint8(127 + 120 * np.sin(y + turn) * np.cos(x + 2 * channel))
