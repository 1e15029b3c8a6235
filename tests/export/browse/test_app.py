"""The API answers as its OpenAPI document says, and refuses everything else in words."""

import base64
import io
import itertools
import json
import os
import random
import threading
import urllib.parse

import jsonschema
import numpy as np
import PIL.Image
import pytest

from export.browse import app, queries
from export.encoder import encode_images
from hqc_tf.data import decoding
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError
from tests.export.browse.conftest import LINES, NAMES

JSON, BYTES = {"Content-Type": "application/json"}, {"Content-Type": "application/octet-stream"}


@pytest.fixture
def check(client):
    """Checks an answer against the document, and returns its contents."""
    document = client.get("/openapi.json").json()

    def checked(answer, path="/api/search", method="post"):
        described = document["paths"][path][method]["responses"][str(answer.status_code)]
        if "$ref" in described:
            described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
        schema = described["content"]["application/json"]["schema"]
        whole = {**schema, "components": document["components"]}
        content = json.loads(answer.content)
        jsonschema.Draft202012Validator(whole).validate(content)
        return content

    return checked


def address(name):
    return urllib.parse.quote(os.fsencode(name), safe="")


def search(client, **query):
    return client.post("/api/search", content=json.dumps(query), headers=JSON)


def test_an_image_finds_what_the_index_finds(client, check, browsed, encoder, photo):
    headers = {"Content-Type": "image/jpeg"}
    answer = client.post("/api/search?k=5&explain=1", content=photo, headers=headers)
    found = check(answer)
    embeddings = encode_images(encoder, Images.of_contents([photo], ["a"])).embeddings
    ids, distances = browsed.search(embeddings, 5)
    assert found["ids"] == ids[0]
    np.testing.assert_allclose(found["distances"], distances[0], rtol=1e-5)
    np.testing.assert_allclose(np.sum(found["books"], axis=1), distances[0], rtol=1e-5, atol=1e-6)
    # The embedding of an answer is the same query, without the image.
    again = check(search(client, embedding=found["embedding"], k=5, explain=True))
    assert again == found


def test_an_id_is_searched_by_its_code_without_its_file(make_client, browsed, tmp_path):
    with make_client(root=tmp_path, encode=None) as client:
        for name in browsed.ids_of(np.array([[0, 20, 60]]))[0]:
            found = json.loads(search(client, id=name, k=60).content)
            row = browsed.ids_of(np.arange(61)[None])[0].index(name)
            words = browsed.codebooks[np.arange(2), browsed.codes[row]]
            ids, distances = browsed.search(words.reshape(1, -1), 60)
            assert (found["ids"], found["distances"]) == (ids[0], distances[0].tolist())


def test_within_a_folder_and_more_than_there_are(client, check, browsed):
    every = browsed.ids_of(np.arange(61)[None])[0]
    found = check(search(client, id=NAMES[0], k=1000, within="class1/"))
    assert sorted(found["ids"]) == sorted(name for name in every if name.startswith("class1/"))
    assert check(search(client, id=NAMES[0], within="none/"))["ids"] == []
    assert len(check(search(client, id=NAMES[0], k=1000))["ids"]) == 61
    # The bytes of a character by themselves are that character.
    cut = "".join(chr(0xDC00 + byte) for byte in "é".encode())
    assert check(search(client, id=NAMES[0], within=f"{cut}/"))["ids"] == [NAMES[0], NAMES[1]]


def test_parallel_requests_get_their_own_answers(client, browsed):
    names = browsed.ids_of(np.arange(60)[None])[0]
    asked = [{"id": name, "k": 1 + number % 5} for number, name in enumerate(names)]
    asked = [query | {"within": name[:3]} for query, name in zip(asked, names, strict=True)]
    found = [None] * 60

    def ask(number):
        found[number] = json.loads(search(client, **asked[number]).content)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for query, answer in zip(asked, found, strict=True):
        assert answer == json.loads(search(client, **query).content)
        assert len(answer["ids"]) <= query["k"]


def test_files_and_thumbnails(client, collection, browsed):
    for name in browsed.ids_of(np.arange(61)[None])[0]:
        file = client.get(f"/api/image/{address(name)}")
        assert file.status_code == 200
        assert file.content == (collection / name).read_bytes()
        assert file.headers["content-type"] == "image/png"
    assert client.get(f"/api/thumbnail/{address(LINES)}").status_code == 200
    small = client.get(f"/api/thumbnail/{address(NAMES[0])}")
    assert small.headers["content-type"] == "image/jpeg"
    again = client.get(f"/api/thumbnail/{address(NAMES[0])}")
    assert again.content == small.content
    with PIL.Image.open(io.BytesIO(small.content)) as picture:
        assert picture.size == (256, 192)


def test_health(client, check):
    answer = client.get("/healthz")
    assert check(answer, "/healthz", "get") == {"status": "ok", "images": 61, "bits": 4}


def faulty(contents):
    raise ZeroDivisionError


def test_every_answer_has_the_policy(client, make_client, photo):
    paths = "/", "/duplicates", "/static/browse.js", "/healthz", "/none", "/api/image/none"
    answers = [client.get(path) for path in paths]
    with make_client(encode=faulty) as other:
        answers.append(other.post("/api/search", content=photo, headers=BYTES))
    assert answers[-1].status_code == 500
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
    page = client.get("/").text
    assert "<style" not in page and "style=" not in page and "onclick" not in page
    assert page.count("<script") == 1


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({"id": "none"}, 404, "none: no image of this id in the index; choose one that it has"),
        ({"id": "\ud800"}, 400, "a name that no file can have"),
        ({"id": NAMES[0], "k": 0}, 400, "k is 0, but must be 1 to 1000; change it"),
        ({"id": NAMES[0], "k": 1001}, 400, "k is 1001"),
        ({"id": NAMES[0], "k": "5"}, 400, "Expected `int`, got `str`"),
        ({"id": NAMES[0], "color": "red"}, 400, "unknown field `color`"),
        ({}, 400, "give one of id and embedding"),
        ({"id": NAMES[0], "embedding": "AAAA"}, 400, "give one of id and embedding"),
        ({"embedding": "AAAA"}, 400, "embedding: not as an answer of this server has it"),
        ({"embedding": "no base64"}, 400, "embedding: not as"),
        ({"embedding": base64.b64encode(np.float32([np.nan] * 6)).decode()}, 400, "embedding: not"),
        ({"embedding": base64.b64encode(np.float32([1e30] * 6)).decode()}, 400, "embedding: not"),
        ([], 400, "not a query"),
    ],
)  # fmt: skip
def test_queries_that_are_none(client, check, query, status, message):
    answer = client.post("/api/search", content=json.dumps(query), headers=JSON)
    assert answer.status_code == status
    assert message in check(answer)["error"]


@pytest.mark.parametrize(
    ("headers", "content", "status", "message"),
    [
        (BYTES, b"", 400, "no image: the body is empty; send an image file"),
        (
            BYTES,
            b"text",
            400,
            f"not searched: no {decoding.NAMES} image",
        ),
        (BYTES, b"\x89PNG\r\n\x1a\n", 400, "not searched: broken or cut short"),
        (JSON, b"{", 400, "not a query"),
        (JSON, b"[" * 10**5, 400, "not a query"),
        (JSON, b" " * (2**20 + 1), 413, "larger than 1 MiB; send a smaller file"),
        ({"Content-Type": "text/html"}, b"a", 415, "text/html: send application/json or image/*"),
        ({}, b"a", 415, "content type missing"),
    ],
)
def test_bodies_that_are_refused(client, check, headers, content, status, message):
    answer = client.post("/api/search", content=content, headers=headers)
    assert answer.status_code == status
    assert message in check(answer)["error"]


def test_an_image_that_is_too_large(make_client, check, photo):
    with make_client(limits=app.Limits(len(photo) - 1)) as client:
        answer = client.post("/api/search", content=photo, headers=BYTES)
    assert answer.status_code == 413
    assert "send a smaller file" in check(answer)["error"]


@pytest.mark.parametrize("path", ["k=x", "k=", "within=%FF&k=-1", "color=1", "&".join("a" * 99)])
def test_addresses_that_are_refused(client, check, path, photo):
    answer = client.post(f"/api/search?{path}", content=photo, headers=BYTES)
    assert answer.status_code == 400
    check(answer)


@pytest.mark.parametrize("other", ["id=100%25.png", "id=none", "embedding=AAAA"])
def test_an_image_is_the_only_query(client, check, photo, other):
    answer = client.post(f"/api/search?k=1&{other}", content=photo, headers=BYTES)
    assert answer.status_code == 400
    assert "or send an image file without them" in check(answer)["error"]


def test_an_encoder_of_features_takes_no_image(make_client, check, photo):
    with make_client(encode=None) as client:
        assert "Choose an image" not in client.get("/").text
        answer = client.post("/api/search", content=photo, headers=BYTES)
    assert answer.status_code == 400
    assert "takes features, not images; choose an id" in check(answer)["error"]


def test_a_server_that_is_away(make_client, check, photo):
    def away(contents):
        raise UserError("localhost:8500: not available after 5 tries; start it")

    with make_client(encode=away) as client:
        answer = client.post("/api/search", content=photo, headers=BYTES)
        assert answer.status_code == 503
        assert "not available" in check(answer)["error"]
        assert search(client, id=NAMES[0]).status_code == 200


def test_a_fault_is_one_answer_and_not_the_end(make_client, photo):
    with make_client(encode=faulty) as client:
        assert client.post("/api/search", content=photo, headers=BYTES).status_code == 500
        assert search(client, id=NAMES[0]).status_code == 200


def test_overload_and_lateness_are_told(make_client, check, photo, monkeypatch):
    monkeypatch.setattr(queries, "MOST_WAITING", 2)
    monkeypatch.setattr(queries, "BATCH", 1)
    started, free = threading.Event(), threading.Event()

    def slow(contents):
        started.set()
        free.wait()
        return np.zeros([len(contents), 6], np.float32), np.ones(len(contents), bool)

    found = []

    def ask():
        found.append(client.post("/api/search", content=photo, headers=BYTES))

    with make_client(encode=slow, limits=app.Limits(seconds=5)) as client:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        started.wait()
        for thread in threads:
            thread.join()
        free.set()
        errors = [check(answer)["error"] for answer in found if answer.status_code == 503]
        assert len(errors) == 8
        assert {error.partition(";")[0] for error in errors} == {
            "too many requests", "no answer within 5 seconds"
        }  # fmt: skip
        assert search(client, id=NAMES[0]).status_code == 200


def test_bytes_that_are_held_are_counted(make_client, check, photo, monkeypatch):
    monkeypatch.setattr(app, "HELD_BYTES", len(photo) - 1)
    with make_client() as client:
        for _ in range(3):
            answer = client.post("/api/search", content=photo, headers=BYTES)
            assert answer.status_code == 503
        assert "too many requests" in check(answer)["error"]
        assert search(client, id=NAMES[0]).status_code == 200


def test_other_hosts_are_refused(client):
    for host in ("evil.example", "", "localhost.evil.example", "a b"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 400
    assert client.get("/healthz", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_no_get_changes_anything(client):
    for path in ("/api/search", "/api/search?id=1"):
        assert client.get(path).status_code == 405
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        assert client.request(method, f"/api/image/{address(NAMES[0])}").status_code == 405


def hostile(photo, seed):
    """Endless requests that are wrong: (method, path, headers, content)."""
    choose = random.Random(seed)
    paths = [
        "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd",
        "%2fetc%2fpasswd", "%00", "a%00.png", "%FF%FE", "class1/../../i", "class1%5c..%5c..", ".",
        "", "//", "none.png", "a" * 5000, "%F0%9F%98%80", "con", "class1/", "%C3", "\u202e.png",
    ]  # fmt: skip
    kinds = ["image/jpeg", "image/png", "application/octet-stream"]
    while True:
        path = choose.choice(paths)
        yield "GET", f"/api/{choose.choice(['image', 'thumbnail'])}/{path}", {}, b""
        at = choose.randrange(len(photo))
        bad = photo[:at] if choose.random() < 0.5 else photo[:at] + b"\xff\0" + photo[at + 2 :]
        yield "POST", "/api/search", {"Content-Type": choose.choice(kinds)}, bad
        noise = choose.randbytes(choose.randrange(300))
        yield "POST", "/api/search", {"Content-Type": choose.choice(kinds)}, noise
        kind = choose.choice(["", "text/plain", "multipart/form-data; boundary=a", "image", "\x7f"])
        yield "POST", "/api/search", {"Content-Type": kind}, photo[:100]
        value = choose.choice([None, 1e999, -1, "x" * 1000, [], {}, True, "../../etc/passwd"])
        field = choose.choice(["id", "embedding", "k", "within", "explain", "other"])
        yield "POST", "/api/search", JSON, json.dumps({field: value}).encode()


@pytest.mark.long
def test_a_thousand_hostile_requests(client, check, photo):
    statuses = []
    for method, path, headers, content in itertools.islice(hostile(photo, 0), 1000):
        answer = client.request(method, path, headers=headers, content=content)
        statuses.append(answer.status_code)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (path, headers, content[:80])
            assert json.loads(answer.content)["error"]
        else:
            # A flipped bit may leave an image.
            assert method == "POST" and content.startswith(photo[:2])
    assert statuses.count(200) < 150
    assert check(search(client, id=NAMES[0]))["ids"]
