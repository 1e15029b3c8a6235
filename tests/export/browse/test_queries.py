"""Batches give each request its own result; a served encoder answers as one here does."""

import asyncio
import io

import numpy as np
import PIL.Image
import pytest

from export.browse import queries
from export.browse.queries import Away, Batches, NotFound, Query, Searcher
from export.client import GrpcModel
from export.encoder import encode_images
from export.index import load_index, write_index
from hqc_tf.data import catalog
from hqc_tf.errors import UserError


def in_batches(things, work, large=()):
    """The results for things that are asked for at once, and the batches they were in."""
    seen = []

    def noted(batch):
        seen.append(len(batch))
        return work(batch)

    async def ask():
        batches = Batches(noted)
        task = asyncio.create_task(batches.run())
        asked = [batches.ask(thing, number in large) for number, thing in enumerate(things)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        task.cancel()
        return found

    return asyncio.run(ask()), seen


def test_each_gets_its_own_and_they_share_batches():
    things = [Query(k=number) for number in range(1, 101)]
    found, seen = in_batches(things, lambda batch: [10 * thing.k for thing in batch])
    assert found == [10 * thing.k for thing in things]
    assert sum(seen) == 100 and max(seen) == queries.BATCH and len(seen) < 10


def test_large_files_are_alone():
    _, seen = in_batches([Query(1)] * 7, lambda batch: [0] * len(batch), large=(2, 4, 5))
    assert seen == [2, 1, 1, 1, 1, 1]


def test_an_error_is_that_of_its_request_alone():
    def work(batch):
        return [UserError("odd") if thing.k % 2 else thing.k for thing in batch]

    found, _ = in_batches([Query(k=number) for number in range(4)], work)
    assert [str(one) for one in found] == ["0", "odd", "2", "odd"]
    found, _ = in_batches([Query(k=1)] * 3, lambda _: 1 / 0)
    assert all(isinstance(one, ZeroDivisionError) for one in found)


def test_one_bad_image_does_not_spoil_a_batch(browsed, encode, photo):
    searcher = Searcher(browsed, encode)
    bad = photo[:99]
    answers = searcher.answer(
        [Query(3, contents=c) for c in (photo, bad, photo)] + [Query(1, id="x")]
    )
    assert answers[0].ids == answers[2].ids
    assert [type(one) for one in answers] == [type(answers[0]), UserError, type(answers[0]),
                                              queries.NotFound]  # fmt: skip


@pytest.fixture
def served(encoder):
    """A model that answers as a server of `encoder` would."""

    class Served(GrpcModel):
        def __init__(self):
            self.server, self.model, self.away = "here:1", "hqc", False

        def predict(self, signature, inputs):
            if self.away:
                raise UserError(f"{self.server}: not available")
            assert len(inputs["image_bytes"]) == 1
            answer = encoder.signatures[signature](image_bytes=list(inputs["image_bytes"]))
            return {name: value.numpy() for name, value in answer.items()}

    return Served()


def test_a_served_encoder_answers_as_one_here(browsed, encoder, encode, served, photo):
    at = queries.encode_at(served, encoder.manifest["fingerprint"])
    asked = [Query(5, contents=c) for c in (photo, b"no image", photo)]
    here, there = (Searcher(browsed, one).answer(asked) for one in (encode, at))
    assert here[0].ids == there[0].ids == there[2].ids
    np.testing.assert_allclose(here[0].distances, there[0].distances, rtol=1e-5)
    assert str(here[1]) == str(there[1])
    served.away = True
    assert isinstance(Searcher(browsed, at).answer(asked[:1])[0], Away)


def test_files_that_only_pillow_reads(browsed, encode, photo):
    with PIL.Image.open(io.BytesIO(photo)) as picture:
        webp = io.BytesIO()
        picture.save(webp, "webp", lossless=True)
    asked = [Query(5, contents=c) for c in (photo, webp.getvalue(), webp.getvalue()[:60])]
    found = Searcher(browsed, encode).answer(asked)
    assert found[0].ids == found[1].ids
    assert str(found[2]) == "not searched: broken or cut short"


def test_ids_that_were_given_are_not_looked_for_again(browsed, monkeypatch):
    searcher, count = Searcher(browsed, None), browsed.num_images
    monkeypatch.setattr(queries, "GIVEN", count - 1)
    (ids,) = searcher.ids_of(np.arange(count)[None])
    looked, find = [], browsed.ids.find
    monkeypatch.setattr(browsed.ids, "find", lambda name: looked.append(name) or find(name))
    # The first one has made room for the last.
    assert [searcher.row(name) for name in ids[1:]] == [*range(1, count)] and not looked
    assert searcher.row(ids[0]) == 0 and looked == [ids[0].encode()]
    with pytest.raises(NotFound, match="none: no image of this id"):
        searcher.row("none")


def test_kept_embeddings_are_the_query_and_the_order(browsed, encoder, collection, tmp_path):
    images = catalog.load_images(f"folder:{collection}")
    encoded = encode_images(encoder, images)
    write_index(
        tmp_path / "i", encoder.codebooks, encoded.codes, images.ids, encoder.identity,
        keep="float16", embeddings=encoded.embeddings,
    )  # fmt: skip
    index = load_index(tmp_path / "i")
    (found,) = Searcher(index, None).answer([Query(61, id=images.ids[7])])
    expected = np.square(encoded.embeddings - encoded.embeddings[7]).sum(axis=1)
    np.testing.assert_allclose(found.distances, np.sort(expected), rtol=0.05, atol=0.01)
    assert found.distances[0] < 1e-6
