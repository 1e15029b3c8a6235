"""Collections of codes for benchmarks, in shards as `export.encode` leaves them."""

import numpy as np
import pyarrow as pa

from export.codes import Shard, start, write_shard

WORDS, WORD_DIM = 16, 8
SHARD = 1_000_000
CLUSTERS, DRAWN = 10_000, 256


def make_codes(folder, kind, num_codes, num_books, num_queries, spread=4.0, seed=0):
    """Writes shards of codes as `export.encode` does, and queries.npy beside them."""
    rng = np.random.default_rng(seed)
    dim = num_books * WORD_DIM
    codebooks = rng.normal(size=[num_books, WORDS, WORD_DIM]).astype(np.float32)
    queries = rng.normal(size=[num_queries, dim])
    if kind == "clustered":
        centers = rng.normal(size=[CLUSTERS, dim]).astype(np.float32)
        words = _words_of_clusters(rng, centers, codebooks, spread)
        queries = centers[rng.integers(0, CLUSTERS, num_queries)] + 0.3 * queries
    np.save(folder / "queries.npy", queries.astype(np.float32))
    count = -(-num_codes // SHARD)
    encoder = {"fingerprint": kind, "path": ""}
    start(folder / "codes", codebooks, encoder, count, {"kind": kind})
    for number in range(count):
        rows = np.arange(number * SHARD, min((number + 1) * SHARD, num_codes))
        if kind == "clustered":
            cluster = rng.integers(0, CLUSTERS, [len(rows), 1])
            drawn = rng.integers(0, DRAWN, [len(rows), num_books])
            codes = words[cluster, np.arange(num_books), drawn]
        else:
            codes = rng.integers(0, WORDS, [len(rows), num_books], np.uint8)
        shard = Shard(codes, _numbered_ids(rows))
        write_shard(folder / "codes", number, count, shard, [])


def encode_real(folder, images, queries, num_books):
    """As `make_codes`, of float [N, E] images and [Q, E] queries, by FAISS' OPQ."""
    import faiss

    kind = f"OPQ{num_books}_{num_books * WORD_DIM},PQ{num_books}x4"
    fitted = faiss.index_factory(images.shape[1], kind)
    fitted.train(images)
    rotation, quantizer = fitted.chain.at(0), faiss.downcast_index(fitted.index).pq
    codebooks = faiss.vector_to_array(quantizer.centroids).reshape(num_books, WORDS, WORD_DIM)
    pairs = quantizer.compute_codes(rotation.apply(images))
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(images), num_books)
    np.save(folder / "queries.npy", rotation.apply(queries))
    start(folder / "codes", codebooks, {"fingerprint": "real", "path": ""}, 1, {"kind": "real"})
    shard = Shard(codes, _numbered_ids(np.arange(len(images))))
    write_shard(folder / "codes", 0, 1, shard, [])


def _words_of_clusters(rng, centers, codebooks, spread):
    """uint8 [clusters, M, drawn]: words of each book, as often as they are likely."""
    num_books = len(codebooks)
    parts = centers.reshape(len(centers), num_books, 1, WORD_DIM)
    logits = -np.square(parts - codebooks).sum(axis=-1) / spread
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    ends = np.cumsum(likely / likely.sum(axis=-1, keepdims=True), axis=-1)
    drawn = rng.random([len(centers), num_books, DRAWN, 1], np.float32)
    return np.minimum((drawn > ends[:, :, None]).sum(axis=-1), WORDS - 1).astype(np.uint8)


def _numbered_ids(rows):
    digits = rows[:, None] // 10 ** np.arange(8, -1, -1) % 10
    text = (digits + ord("0")).astype(np.uint8).ravel()
    starts = np.arange(len(rows) + 1, dtype=np.int64) * 9
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)
