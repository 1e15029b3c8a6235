"""A folder of photos, its index and the server over it."""

import io
import json
import signal
import subprocess
import sys

import PIL.Image
import pytest
from starlette.testclient import TestClient

from export.browse import app, queries
from export.encoder import encode_images
from export.index import load_index, write_index
from hqc_tf.data import catalog

NAMES = {0: "é/a b+c%20&d.png", 1: "é/<i>.png", 2: "100%.png"}
# A field of a page cannot hold it.
LINES = "two\nlines.png"


@pytest.fixture(scope="session")
def collection(photos, tmp_path_factory):
    """The photos in folders, some under names that are hard in an address or a page."""
    folder = tmp_path_factory.mktemp("collection")
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        own = {**NAMES, 3: LINES}.get(number, f"{path.parent.name}/{path.name}")
        target = folder / own
        target.parent.mkdir(exist_ok=True)
        with PIL.Image.open(path) as picture:
            # Larger than a thumbnail.
            picture.resize((400, 300)).save(target)
    (folder / "class1/\udcff.png").write_bytes((folder / NAMES[0]).read_bytes())
    return folder


@pytest.fixture(scope="session")
def browsed(encoder, collection, tmp_path_factory):
    """The index of `collection`, as loaded."""
    images = catalog.load_images(f"folder:{collection}")
    path = tmp_path_factory.mktemp("browsed") / "i"
    encoded = encode_images(encoder, images)
    write_index(path, encoder.codebooks, encoded.codes, images.ids, encoder.identity)
    return load_index(path)


@pytest.fixture(scope="session")
def encode(encoder):
    return queries.encode_with(encoder)


@pytest.fixture
def make_client(browsed, encode, collection, tmp_path):
    """Makes a client of a server in this process; `encode` and others may be changed."""

    def make(**changes):
        own = {"encode": encode, "root": collection, "cache": tmp_path / "cache"} | changes
        return TestClient(
            app.make_app(browsed, **own), "http://localhost", raise_server_exceptions=False
        )

    return make


@pytest.fixture
def client(make_client):
    with make_client() as client:
        yield client


@pytest.fixture(scope="session")
def photo(collection):
    """The contents of an image file that is not in the collection as it is."""
    opened = io.BytesIO()
    with PIL.Image.open(collection / NAMES[0]) as picture:
        picture.save(opened, "jpeg")
    return opened.getvalue()


@pytest.fixture(scope="session")
def server(browsed, collection, tmp_path_factory):
    """The address of a server in a process of its own, started as a user starts it."""
    folder = tmp_path_factory.mktemp("server")
    group = {"ids": [NAMES[0], NAMES[1]], "largest": NAMES[1], "sides": [[4, 3], [8, 6]]}
    (folder / "groups.jsonl").write_text(json.dumps(group | {"bytes": [9, 99]}) + "\n")
    command = [
        sys.executable, "-m", "export.browse", f"--index={browsed.path}", "--port=0",
        f"--images=folder:{collection}", f"--duplicates={folder}/groups.jsonl", "--deadline=8",
        "--most_megabytes=1",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    shows = process.stdout.readline()
    assert process.stdout.readline() == "ready; Ctrl-C ends it\n", (folder / "log").read_text()
    yield shows.partition(" ")[0]
    assert process.poll() is None, (folder / "log").read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in (folder / "log").read_text()
