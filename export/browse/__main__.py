"""A page to search an index by looking, and a JSON API beside it, on this machine alone.

`python -m export.browse --index=index/ --images=folder:photos/`
"""

import contextlib
import io
import pathlib
import socket
import tempfile

import numpy as np
import PIL.Image
from absl import flags

from export.encoder import load_encoder_of
from export.index import load_index
from hqc_tf import commands
from hqc_tf.data import catalog
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

        fingerprint = index.manifest["encoder"]["fingerprint"]
        served = client.connect(values.server, values.model, values.deadline)
        return queries.encode_at(served, fingerprint)
    encoder = load_encoder_of(index.manifest, values.saved_model)
    index.check_encoder(encoder.manifest["fingerprint"])
    encode = queries.encode_with(encoder)
    if encode:
        # The first call takes seconds.
        file = io.BytesIO()
        PIL.Image.fromarray(np.zeros([64, 64, 3], np.uint8)).save(file, "jpeg")
        encode([file.getvalue()])
    return encode


def main(_: list[str]) -> None:
    values = flags.FLAGS
    try:
        import uvicorn

        from export.browse import app
        from export.browse.protocol import Protocol
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'hqc-tf[browse]'") from error
    root, index = _root(values.images), load_index(values.index)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(values.host, values.port))
        cache = values.thumbnails or stack.enter_context(tempfile.TemporaryDirectory())
        limits = app.Limits(values.most_megabytes * 2**20, values.deadline)
        loopback = values.host in LOOPBACK
        made = app.make_app(
            index,
            _encode(values, index),
            root,
            cache,
            values.thumbnail_megabytes * 2**20,
            limits,
            (*LOOPBACK, "[::1]") if loopback else ("*",),
            values.duplicates,
        )
        host, port = listening.getsockname()[:2]
        print(
            f"http://{f'[{host}]' if ':' in host else host}:{port}/ shows "
            f"{counted(index.num_images, 'image')}"
        )
        if not loopback:
            print(
                f"--host={values.host}: whoever reaches this machine there sees all images in "
                f"{pathlib.Path(root).resolve()} that are in the index; there is no login and no "
                "encryption"
            )
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
        print("ready; Ctrl-C ends it", flush=True)
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
    flags.DEFINE_float("deadline", 30, "seconds for a request to arrive, and for its answer", 0.1)
    flags.DEFINE_integer("most_megabytes", 32, "MiB of an image that is sent", 1, 286)
    flags.DEFINE_string("thumbnails", "", "folder to keep small pictures in; empty: until it ends")
    flags.DEFINE_integer("thumbnail_megabytes", 256, "MiB of small pictures that are kept", 1)
    commands.run(main)
