"""Queries to an index and its encoder, in batches that all cores work on.

Requests wait in a queue while a batch is under way, and the next batch takes what has come
meanwhile. A full queue refuses at once, so that an overload costs no memory.
"""

import asyncio
import collections
import concurrent.futures
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from export import kept
from export.encoder import Encoder
from export.index import Index
from hqc_tf.data import decoding
from hqc_tf.errors import UserError

# Queries of a batch, and queries that may wait for the next one.
BATCH, MOST_WAITING = 32, 128
# Sub-folders whose subset of the index is kept.
SUBSETS = 8
# Ids that were given last, whose rows are kept.
GIVEN = 2**16

# Contents of B image files -> embeddings float32 [B, M*D] and whether each is an image, bool [B].
Encode = Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]


class Overloaded(Exception):
    """More queries wait than may."""


class Query(NamedTuple):
    """What a request looks for; one of contents, id and embedding."""

    k: int
    within: str = ""  # what ids begin with
    contents: bytes = b""  # of an image file
    id: str = ""  # of an image in the index, whose code is the query
    embedding: np.ndarray | None = None  # float32 [M*D]


class Answer(NamedTuple):
    """The nearest images, nearest first."""

    ids: list[str]
    distances: list[float]
    books: list[list[float]]  # what each book adds to each distance
    embedding: np.ndarray  # of the query


class NotFound(UserError):
    """There is no image of an id."""


class Away(UserError):
    """The encoder gives no answer."""


class Searcher:
    """Answers batches of queries.

    Args:
        index: what is searched.
        encode: of the index's encoder; None where it encodes no images.
    """

    def __init__(self, index: Index, encode: Encode | None):
        self._index, self._encode = index, encode
        sizes = np.diff(index.group_starts.astype(np.int64))
        self._codes = np.empty(index.num_images, np.min_scalar_type(len(sizes)))
        self._codes[index.grouped_rows] = np.repeat(np.arange(len(sizes)), sizes)
        self._subset = functools.lru_cache(SUBSETS)(index.subset)
        self._given, self._lock = collections.OrderedDict(), threading.Lock()

    def ids_of(self, rows: np.ndarray) -> list[list[str]]:
        """The ids of [Q, k] rows, whose pictures are asked for next."""
        found = self._index.ids_of(rows)
        for ids, own in zip(found, rows.tolist(), strict=True):
            for name, row in zip(ids, own, strict=True):
                self._note(name, row)
        return found

    def _note(self, name, row):
        with self._lock:
            self._given[name] = row
            self._given.move_to_end(name)
            if len(self._given) > GIVEN:
                self._given.popitem(last=False)

    def row(self, name: str) -> int:
        """The row of the image of an id; `NotFound` where there is none."""
        row = self._given.get(name)
        if row is None:
            # Goes through all ids, a second for ten million.
            row = self._index.ids.find(name.encode("utf-8", "surrogatepass"))
        if row is None:
            raise NotFound(f"{name}: no image of this id in the index; choose one that it has")
        self._note(name, row)
        return row

    def answer(self, queries: Sequence[Query]) -> list[Answer | UserError]:
        """The answer to each query, or why there is none."""
        embeddings = self._embed(queries)
        found = [*embeddings]
        alike = collections.defaultdict(list)
        for row, query in enumerate(queries):
            if not isinstance(embeddings[row], UserError):
                alike[query.k, query.within].append(row)
        for (k, within), rows in alike.items():
            chosen = np.stack([embeddings[row] for row in rows])
            for row, answer in zip(rows, self._search(chosen, k, within), strict=True):
                found[row] = answer
        return found

    def _search(self, embeddings, k, within):
        chosen = self._subset(within) if within else None
        k = k if chosen else min(k, self._index.num_images)
        rescore = self._index.default_rescore
        found = self._index.rows(embeddings, k, within=chosen, rescore=rescore)
        books = self._index.book_distances(embeddings, found)
        columns = self.ids_of(found.rows), found.distances.tolist(), books.tolist()
        return [Answer(*row) for row in zip(*columns, embeddings, strict=True)]

    def _embed(self, queries):
        """The embedding of each query, or the `UserError` of why there is none."""
        made = [query.embedding for query in queries]
        files = [row for row, query in enumerate(queries) if query.contents]
        if files:
            contents = [queries[row].contents for row in files]
            for row, embedding in zip(files, self._encoded(contents), strict=True):
                made[row] = embedding
        for row, query in enumerate(queries):
            if query.id:
                try:
                    made[row] = self._vector(self.row(query.id))
                except UserError as error:
                    made[row] = error
        return made

    def _vector(self, row):
        """What the index knows of the embedding of an image, float32 [M*D]."""
        if self._index.kept is not None:
            return kept.unpack(self._index.kept[[row]], self._index.keep)[0]
        return self._index.decode(self._codes[[row]])[0]

    def _encoded(self, contents):
        if not self._encode:
            error = UserError("the encoder of this index takes features, not images; choose an id")
            return [error] * len(contents)
        made = [*map(_readable, contents)]
        files = [row for row, file in enumerate(made) if isinstance(file, bytes)]
        try:
            encoded = self._encode([made[row] for row in files]) if files else ((), ())
        except UserError as error:
            return [Away(str(error))] * len(contents)
        for row, embedding, fits in zip(files, *encoded, strict=True):
            why = None if fits else decoding.why_refused(made[row])
            made[row] = UserError(f"not searched: {why}") if why else embedding
        return made


def _readable(contents):
    """The contents of a file as TensorFlow decodes them, or the `UserError` of why it cannot."""
    try:
        return decoding.readable(contents)
    except ValueError as error:
        return UserError(f"not searched: {error}")


def encode_with(encoder: Encoder) -> Encode | None:
    """The `Encode` of a loaded encoder; None where it encodes features."""
    if encoder.feature_width:
        return None

    def encode(contents):
        answer = encoder.signatures["encode_bytes"](image_bytes=tf.constant(list(contents)))
        return answer["embedding"].numpy(), answer["valid"].numpy()

    return encode


def encode_at(served: Any, fingerprint: str) -> Encode:
    """The `Encode` of the encoder with a fingerprint at `served` (`export.client.connect`).

    The server has batches of its own, so each image is a request.
    """
    # It needs gRPC, which nothing else here does.
    from export import client

    pool = concurrent.futures.ThreadPoolExecutor(BATCH)

    def encode_one(contents):
        names, files = ["the image"], np.array([contents], object)
        return client.encode_contents(served, names, files, fingerprint)

    def encode(contents):
        found = [*pool.map(encode_one, contents)]
        embeddings = np.concatenate([encoded.embeddings for encoded, _ in found])
        return embeddings, np.concatenate([valid for _, valid in found])

    return encode


class Batches:
    """Gives what waits to one thread, a batch at a time.

    Args:
        work: a list of at most `BATCH` things -> a list of results, `Exception`s among them.
    """

    def __init__(self, work: Callable[[list], list]):
        self._work = work
        self._waiting, self._wake = [], asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    async def ask(self, thing: Query, is_large: bool = False) -> Answer:
        """The result for one thing, once it is there; `Overloaded` where too many wait.

        A large one is a batch of its own.
        """
        if len(self._waiting) >= MOST_WAITING:
            self._waiting = [one for one in self._waiting if not one[1].done()]
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((thing, future, is_large))
        self._wake.set()
        found = await future
        if isinstance(found, Exception):
            raise found
        return found

    async def run(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._next()
            if not batch:
                self._wake.clear()
                continue
            things, futures = zip(*batch, strict=True)
            try:
                results = await loop.run_in_executor(self._thread, self._work, list(things))
            except Exception as error:
                results = [error] * len(futures)
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _next(self):
        """The next batch, without those whose request has ended."""
        batch = []
        while self._waiting and len(batch) < BATCH:
            thing, future, is_large = self._waiting[0]
            if is_large and batch:
                break
            self._waiting.pop(0)
            if not future.done():
                batch.append((thing, future))
            if is_large:
                break
        return batch
