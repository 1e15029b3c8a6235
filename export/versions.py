"""Numbered versions of SavedModels as TensorFlow Serving watches them, and their warm-up requests.

A version appears complete or not at all. The server runs the warm-up requests when it loads one.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike

import numpy as np
import tensorflow as tf

from export import folders
from hqc_tf import files
from hqc_tf.errors import UserError

# TensorFlow Serving's name for the file, and its place in a SavedModel.
REQUESTS = "assets.extra/tf_serving_warmup_requests"
# Images, height and width of warm-up requests, of which TensorFlow Serving takes at most 1,000.
WARMUP_SHAPES = ((1, 32, 32), (1, 480, 640), (8, 240, 320))


def versions(output: str | PathLike) -> list[int]:
    """The versions under `output`."""
    names = [path.name for path in pathlib.Path(output).glob("*") if path.is_dir()]
    return [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]


def newest(path: str | PathLike) -> pathlib.Path:
    """The folder of the newest version under `path`, or `path` itself where there is none.

    UserError where TensorFlow cannot read a folder of this name.
    """
    path = pathlib.Path(path).resolve()
    files.check_folder_name(path)
    found = versions(path)
    return path / str(max(found)) if found else path


def free_version(output: str | PathLike, number: int | None = None) -> int:
    """The version to write: `number`, or the next where it is None.

    UserError where `output` is a file, version `number` exists, or TensorFlow could not read a
    folder of this name.
    """
    output = pathlib.Path(output)
    files.check_folder_name(output.resolve(), "--output=")
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
    # Until then its name is no number, and TensorFlow Serving looks only at those.
    with folders.new_folder(pathlib.Path(output, str(number))) as folder:
        yield folder
        # Another process may have written it meanwhile, and a server may read it.
        free_version(output, number)


def write_warmup(
    folder: pathlib.Path, of_pixels: str, of_files: str, inputs: Mapping[str, np.ndarray]
) -> None:
    """Writes warm-up requests into a SavedModel's folder, as a TFRecord of PredictionLog.

    Args:
        folder: of the SavedModel.
        of_pixels: signature that gets images [B, H, W, 3] uint8 of each of `WARMUP_SHAPES`.
        of_files: signature that gets the same images as JPEG and PNG files, in turns.
        inputs: what both get beside the images.
    """
    pixels = [np.stack([_picture(h, w, turn) for turn in range(n)]) for n, h, w in WARMUP_SHAPES]
    requests = [(of_pixels, {"images": batch}) for batch in pixels]
    requests += [(of_files, {"image_bytes": _as_files(batch)}) for batch in pixels]
    write_requests(folder, [(signature, images | inputs) for signature, images in requests])


def write_requests(
    folder: pathlib.Path, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> None:
    """Writes pairs of signature and inputs, which a server runs when it loads the SavedModel."""
    # Only a writer of SavedModels needs the package.
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    path = folder / REQUESTS
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(signature_name=signature),
                inputs={key: tf.make_tensor_proto(x) for key, x in inputs.items()},
            )
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _as_files(pictures):
    encode = (tf.io.encode_jpeg, tf.io.encode_png)
    return np.array([encode[turn % 2](x).numpy() for turn, x in enumerate(pictures)], object)


def _picture(height, width, turn):
    """Soft waves of color, which compress well; [H, W, 3] uint8."""
    y, x, channel = np.ogrid[0 : 6 : height * 1j, 0 : 6 : width * 1j, 0:3]
    return np.uint8(127 + 120 * np.sin(y + turn) * np.cos(x + 2 * channel))
