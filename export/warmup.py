"""The requests that TensorFlow Serving runs when it loads a version, before anyone waits."""

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

# Serving's name for the file, and its place in a SavedModel.
REQUESTS = "assets.extra/tf_serving_warmup_requests"
# Images of a request, their height and width.
BATCHES = ((1, 32, 32), (1, 480, 640), (8, 240, 320))


def write_requests(folder, requests):
    """Writes a TFRecord of PredictionLog.

    Args:
      folder: of the SavedModel.
      requests: (signature, {name: array}) pairs, at most a thousand (Serving's limit).
    """
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


def pixel_batches():
    """Images as clients send them decoded: uint8 [B, H, W, 3] of several sizes."""
    return [np.stack([_picture(h, w, turn) for turn in range(count)]) for count, h, w in BATCHES]


def file_batches():
    """The same images as JPEG and PNG files, in turns: object [B] of bytes."""
    return [np.array([*map(_encode, range(len(b)), b)], object) for b in pixel_batches()]


def _encode(turn, picture):
    encode = (tf.io.encode_jpeg, tf.io.encode_png)[turn % 2]
    return encode(picture).numpy()


def _picture(height, width, turn):
    """Soft waves of colour, which files hold in few bytes; uint8 [H, W, 3]."""
    y, x, channel = np.ogrid[0 : 6 : height * 1j, 0 : 6 : width * 1j, 0:3]
    return np.uint8(127 + 120 * np.sin(y + turn) * np.cos(x + 2 * channel))
