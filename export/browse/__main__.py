"""A page to search an index by looking, and a JSON API beside it, on this machine alone.

`python -m export.browse --index=index/ --images=folder:photos/`
"""

import contextlib
import io
import pathlib
import signal
import socket
import sys
import tempfile

import numpy as np
import PIL.Image
from absl import flags

from export.encoder import load_encoder_of
from export.index import load_index
from hqc_tf import commands
from hqc_tf.data import catalog, decoding
from hqc_tf.errors import UserError, counted

LOOPBACK = "127.0.0.1", "localhost", "::1"


def _root(images):
    source = catalog.parse(images)
    if source.kind != "folder" or not source.root.is_dir():
        raise UserError(f"--images={images}: not a folder of images; give folder:PATH")
    return source.root


def _listen(host, port):
    """A socket; UserError where the address is not free."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        text = f"--host={host} --port={port}: {error.strerror}; give another port, or 0 for any"
        raise UserError(text) from error


def _encode(values, index):
    """Encodes with the index's encoder, here or at --server; None where it takes features."""
    from export.browse import queries

    if values.server:
        from export import client

        decoding.raise_max_pixels(values.max_pixels)
        fingerprint = index.manifest["encoder"]["fingerprint"]
        served = client.connect(values.server, values.model, values.deadline)
        return queries.encode_at(served, fingerprint)
    encoder = load_encoder_of(index.manifest, values.saved_model)
    index.check_encoder(encoder.manifest["fingerprint"])
    encode = queries.encode_with(encoder)
    if encode:
        encode([_black()])
    return encode


def _black():
    """A small image file, for what takes seconds at its first call."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros([64, 64, 3], np.uint8)).save(file, "jpeg")
    return file.getvalue()


def _end(number, _):
    """Ends the process by an exception, so that what is temporary is removed."""
    sys.exit(128 + number)


def _tell(values, address, num_images, root):
    host, port = address[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}/ shows {counted(num_images, 'image')}")
    if values.host not in LOOPBACK:
        print(
            f"--host={values.host}: whoever reaches this machine there sees all images in "
            f"{pathlib.Path(root).resolve()} that are in the index; there is no login and no "
            "encryption"
        )
    print("ready; Ctrl-C ends it", flush=True)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    try:
        import uvicorn

        from export.browse import app, pictures
        from export.browse.protocol import Protocol
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'hqc-tf[browse]'") from error
    root, index = _root(values.images), load_index(values.index)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(values.host, values.port))
        signal.signal(signal.SIGTERM, _end)
        cache = values.thumbnails or stack.enter_context(tempfile.TemporaryDirectory())
        made = app.make_app(
            index,
            _encode(values, index),
            root,
            cache,
            values.thumbnail_megabytes * 2**20,
            app.Limits(values.most_megabytes * 2**20, values.deadline),
            (*LOOPBACK, "[::1]") if values.host in LOOPBACK else ("*",),
            values.duplicates,
        )
        pictures.make_small("", _black())
        config = uvicorn.Config(
            made,
            http=Protocol,
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=app.MOST_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        _tell(values, listening.getsockname(), index.num_images, root)
        uvicorn.Server(config).run(sockets=[listening])
        # It ends by a signal alone, and asyncio may lose Ctrl-C at the very end.
        raise KeyboardInterrupt


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_string(
        "images", None, "folder:PATH of the files, whose names in it are the ids", required=True
    )
    flags.DEFINE_string(
        "host", "127.0.0.1", "address to listen at; others than this machine's own let others in"
    )
    flags.DEFINE_integer("port", 8000, "port to listen at; 0: any that is free", 0, 65535)
    flags.DEFINE_string("duplicates", "", "file that export.duplicates wrote, to show its groups")
    flags.DEFINE_string("saved_model", "", "the index's encoder, if it has moved since")
    flags.DEFINE_string(
        "server",
        "",
        "a TensorFlow Serving that has the encoder: host:port of gRPC, http://host:port of REST; "
        "empty: the encoder runs here",
    )
    flags.DEFINE_string("model", "hqc", "the encoder's name on --server")
    text = "with --server: pixels of the largest file, which is made smaller before it is sent"
    flags.DEFINE_integer("max_pixels", decoding.MAX_PIXELS, text, upper_bound=decoding.MOST_PIXELS)
    flags.DEFINE_float("deadline", 30, "seconds for a request to arrive, and for its answer", 0.1)
    flags.DEFINE_integer("most_megabytes", 32, "MiB of an image that is sent", 1, 286)
    flags.DEFINE_string("thumbnails", "", "folder to keep small pictures in; empty: until it ends")
    flags.DEFINE_integer("thumbnail_megabytes", 256, "MiB of small pictures that are kept", 1)
    commands.run(main)
