"""Search at scale: `python -m benchmarks.search --num_codes=1000000 --books=4 --books=8 --books=16`

For each number of codes and of books (of 16 words) it makes codes in shards, builds an index from
them, loads it and queries it in turns with its rivals, each in a process of its own: --rivals are
FAISS' fast scan of the same codebooks and codes, unranked and ranked by exact tables, and usearch
and hnswlib, graphs of the vectors that the codes stand for. Prints build time, peak memory, bytes
an image on disk and in memory, load time, milliseconds of a single query (the median, and what 99
of 100 take at most), queries/s of a batch (the median of --turns), and recall@k against an exact
NumPy table scan.

--kind=random: every code is as likely. --kind=clustered: each image is of one of 10,000 clusters; a
cluster has a normal center, and its images' words are drawn, book by book, with probabilities
softmax(-squared distance to the center / --spread); a query is a center with normal noise of 0.3.
--kind=real: codes by FAISS' OPQ of the rows of --images, with the queries --embeddings; recall is
also of the exact nearest floats. --num_leaves divides index and FAISS alike. --index measures an
index that stands, with the queries of --embeddings, beside rivals with its codes.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks import machine, made_codes
from export.codes import read_shards
from export.index import collection, load_index, scann, write_collection
from export.index.neighbors import usual_candidates
from hqc_tf import commands, retrieval
from hqc_tf.errors import UserError

EXACT_QUERIES = 20
# Of the graphs: usual settings, and as many candidates as the others rank.
GRAPH = {"connectivity": 16, "expansion_add": 128}
COLUMNS = {
    "load, s": 1, "bytes in memory": 1, "single, ms": 2, "99 of 100, ms": 2,
    "queries/s, batched": 0, "recall": 3, "recall of floats": 3,
}  # fmt: skip


def build(folder, num_leaves, recall=None):
    """(seconds, peak MiB) of building folder/index from folder/codes."""
    before, start = machine.memory_mib(), time.perf_counter()
    read = read_shards(folder / "codes")
    images = collection.of_shards(read.shards)
    path, leaves = folder / "index", {"num_leaves": num_leaves, "recall": recall}
    write_collection(path, read.codebooks, images, read.encoder, **leaves)
    return time.perf_counter() - start, machine.memory_mib() - before


def open_index(path, leaves_to_search, k):
    """The index at `path`, as a function that loads it; that gives a search: [Q] -> rows [Q, k]."""
    # Memory and time of a load are without those of libraries, for each rival.
    importlib.import_module("scann.scann_ops.py.scann_ops_pybind")

    def load():
        index = load_index(path)
        return lambda queries: index.rows(queries, k, leaves_to_search=leaves_to_search).rows

    return load


def open_faiss(path, num_probes, rerank, k):
    """The same of FAISS' fast scan over the codes of the index at `path`, re-ranked or not.

    Args:
        num_probes: leaves searched, of those of the index; 0: no leaves.
        rerank: candidates ranked by exact tables, as ours are; 0: as FAISS gives them.
    """
    import faiss

    files = tempfile.TemporaryDirectory()
    machine.apart(_write_faiss, pathlib.Path(files.name), path, num_probes)
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))

    def load():
        searched = faiss.read_index(f"{files.name}/faiss")
        if not rerank:
            return lambda queries: searched.search(queries, k)[1]
        codes, codebooks = (np.load(f"{files.name}/{name}.npy") for name in ("codes", "codebooks"))

        def search(queries):
            rows = searched.search(queries, rerank)[1]
            order = np.argsort(_distances(queries, codes[rows], codebooks), axis=1)[:, :k]
            return np.take_along_axis(rows, order, axis=1)

        return search

    return load


def _write_faiss(folder, path, num_probes):
    """Writes what `open_faiss` loads, in a process of its own, whose memory is not measured."""
    import faiss

    index = load_index(path)
    codes = index.codes
    np.save(folder / "codes.npy", codes)
    np.save(folder / "codebooks.npy", index.codebooks)
    faiss.write_index(_faiss_index(faiss, index, codes, num_probes), f"{folder}/faiss")


def open_graph(path, library, k):
    """The same of a graph of `library`, usearch or hnswlib, over the vectors of the codes."""
    made = importlib.import_module(f"{library}.index" if library == "usearch" else library)
    index = load_index(path)
    vectors = index.codebooks[np.arange(len(index.codebooks)), index.codes]
    vectors = vectors.reshape(index.num_images, -1)
    rows = np.arange(len(vectors))

    def usearch():
        options = {**GRAPH, "expansion_search": usual_candidates(k)}
        graph = made.Index(ndim=vectors.shape[1], metric="l2sq", dtype="f32", **options)
        graph.add(rows, vectors)
        return lambda queries: graph.search(queries, k).keys.astype(np.int64).reshape(-1, k)

    def hnswlib():
        graph = made.Index("l2", vectors.shape[1])
        graph.init_index(
            max_elements=len(rows), ef_construction=GRAPH["expansion_add"], M=GRAPH["connectivity"]
        )
        graph.add_items(vectors, rows)
        graph.set_ef(usual_candidates(k))
        return lambda queries: graph.knn_query(queries, k)[0].astype(np.int64)

    return {"usearch": usearch, "hnswlib": hnswlib}[library]


def scan(path, folder, k):
    """Runs an exact NumPy table scan, keeps its distances in `folder`, and gives its queries/s."""
    index = load_index(path)
    queries = np.load(folder / "queries.npy")[:EXACT_QUERIES]
    tables = retrieval.distance_tables(queries, index.codebooks, "squared").numpy()
    sizes = np.diff(index.group_starts).astype(np.int64)
    start = time.perf_counter()
    nearest = np.full([len(queries), k], np.inf, np.float32)
    for first in range(0, len(sizes), made_codes.SHARD):
        codes = index.distinct_codes[first : first + made_codes.SHARD].T.astype(np.intp)
        repeated = np.minimum(sizes[first : first + made_codes.SHARD], k)
        for number, table in enumerate(tables):
            distances = sum(table[book][words] for book, words in enumerate(codes))
            few = np.argpartition(distances, min(k, len(distances)) - 1)[:k]
            both = [nearest[number], np.repeat(distances[few], repeated[few])]
            nearest[number] = np.sort(np.concatenate(both))[:k]
    rate = len(queries) / (time.perf_counter() - start)
    np.save(folder / "nearest.npy", nearest)
    return {"queries/s, batched": rate, "recall": 1.0}


class Contender:
    """A way to search in a process of its own, so that its memory is its own; takes turns."""

    def __init__(self, opener, *arguments):
        context = multiprocessing.get_context("spawn")
        self._process = concurrent.futures.ProcessPoolExecutor(1, context)
        self._opened, self._seconds = (opener, *arguments), []

    def __call__(self, function, *arguments):
        return self._process.submit(function, *arguments).result()

    def figures(self, turns, path, folder):
        """dict of what was measured."""
        single, batched = (np.concatenate(part) for part in zip(*turns, strict=True))
        return {
            "single, ms": np.median(single) * 1e3,
            "99 of 100, ms": np.percentile(single, 99) * 1e3,
            "queries/s, batched": 1 / np.median(batched),
        } | self(recalls, path, folder)

    def start(self, folder):
        """Loads it; dict of what that took."""
        return self(_start, folder, *self._opened)

    def close(self):
        """Ends the process."""
        self._process.shutdown()


_SEARCH = {}


def _start(folder, opener, path, *arguments):
    load = opener(path, *arguments)
    before, start = machine.memory_mib("RssAnon"), time.perf_counter()
    search = load()
    seconds = time.perf_counter() - start
    held = machine.memory_mib("RssAnon") - before
    queries = np.load(folder / "queries.npy")
    _SEARCH.update(search=search, queries=queries)
    search(queries[:1])
    num_images = json.loads((path / "manifest.json").read_text())["num_images"]
    return {"load, s": seconds, "bytes in memory": held * 2**20 / num_images}


def turn(number, turns):
    """Seconds of single queries, a part of all in each turn, and of a query in a batch of all."""
    queries = _SEARCH["queries"]
    alone = [queries[row : row + 1] for row in range(number, len(queries), turns)]
    single = [_seconds(each) for each in alone]
    return single, [_seconds(queries) / len(queries)]


def _seconds(queries):
    start = time.perf_counter()
    _SEARCH["search"](queries)
    return time.perf_counter() - start


def recalls(path, folder):
    """dict of the recall against the exact scan, and of the floats where they are known."""
    index, exact = load_index(path), np.load(folder / "nearest.npy")
    queries = _SEARCH["queries"]
    rows = _SEARCH["search"](queries)
    first = queries[: len(exact)], index.codes[rows[: len(exact)]], index.codebooks
    # Equal distances are equally right.
    found = {"recall": float(np.mean(_distances(*first) <= exact[:, -1:] * (1 + 1e-5)))}
    if (folder / "nearest_floats.npy").exists():
        floats = np.load(folder / "nearest_floats.npy")
        same = (floats[:, :, None] == rows[:, None]).any(axis=2)
        found["recall of floats"] = float(same.mean())
    return found


def _distances(queries, codes, codebooks):
    """Exact distances of each query to its own [Q, R, M] codes."""
    tables = retrieval.distance_tables(queries, codebooks, "squared")
    return retrieval.candidate_distances(tables, codes).numpy()


def _faiss_index(faiss, index, codes, num_probes):
    num_books, _, word_dim = index.codebooks.shape
    if not num_probes:
        flat = faiss.IndexPQ(num_books * word_dim, num_books, 4)
        _give_codebooks(faiss, flat, index.codebooks)
        faiss.copy_array_to_vector(_nibbles(codes).ravel(), flat.codes)
        flat.ntotal = len(codes)
        return faiss.IndexPQFastScan(flat)
    centers, tokens = _leaves_of(index)
    coarse = faiss.IndexFlatL2(centers.shape[1])
    coarse.add(centers)
    parted = faiss.IndexIVFPQ(coarse, centers.shape[1], len(centers), num_books, 4)
    parted.by_residual = False
    _give_codebooks(faiss, parted, index.codebooks)
    order = np.argsort(tokens, kind="stable")
    starts = np.searchsorted(tokens[order], np.arange(len(centers) + 1))
    for leaf, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        rows = order[start:end]
        lists = faiss.swig_ptr(rows), faiss.swig_ptr(_nibbles(codes[rows]))
        parted.invlists.add_entries(leaf, len(rows), *lists)
    parted.ntotal = len(codes)
    parted.nprobe = num_probes
    fast = faiss.IndexIVFPQFastScan(parted)
    fast.nprobe = num_probes
    return fast


def _give_codebooks(faiss, index, codebooks):
    faiss.copy_array_to_vector(codebooks.ravel(), index.pq.centroids)
    index.is_trained = True


def _nibbles(codes):
    return np.ascontiguousarray(codes[:, 0::2] | codes[:, 1::2] << 4)


def _leaves_of(index):
    serialized = (index.path / "serialized_partitioner.pb").read_bytes()
    tokens = np.load(index.path / "datapoint_to_token.npy")
    of_images = np.empty(index.num_images, np.int32)
    of_images[index.grouped_rows] = np.repeat(tokens, np.diff(index.group_starts))
    return scann.centers_of(serialized), of_images


def _bytes_on_disk(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def contenders(path, leaves, rivals, k):
    """{name: `Contender`} of the ways to search the index at `path`."""
    found = {}
    for count in leaves:
        suffix = f", {count} leaves searched" if count else ""
        found["index" + suffix] = open_index, path, count or None, k
        for rerank in (0, usual_candidates(k)) if "faiss" in rivals else ():
            name = f"FAISS{suffix}" + (", re-ranked" if rerank else "")
            found[name] = open_faiss, path, count, rerank, k
    for library in rivals:
        if library != "faiss":
            found[library] = open_graph, path, library, k
    return {name: Contender(*opened) for name, opened in found.items()}


def compare(path, folder, leaves, rivals, k, turns):
    """Yields (name, figures) of each way to search the index at `path`, measured in turns."""
    yield "NumPy table scan", machine.apart(scan, path, folder, k)
    ways = contenders(path, leaves, rivals, k)
    with contextlib.ExitStack() as stack:
        for way in ways.values():
            stack.callback(way.close)
        started = {name: way.start(folder) for name, way in ways.items()}
        taken = {name: [] for name in ways}
        for number in range(turns):
            for name, way in ways.items():
                taken[name].append(way(turn, number, turns))
        for name, way in ways.items():
            yield name, started[name] | way.figures(taken[name], path, folder)


def _print(name, figures):
    cells = [
        f"{figures[key]:.{digits}f}" if key in figures else "-" for key, digits in COLUMNS.items()
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _measure_made(values, num_codes, num_books, folder):
    if values.kind == "real":
        images, queries = (
            np.load(x, allow_pickle=False) for x in (values.images, values.embeddings)
        )
        num_codes = len(images)
        made_codes.encode_real(folder, images, queries[: values.num_queries], num_books)
        keep_nearest_floats(folder, images, queries[: values.num_queries], values.k)
    else:
        made = values.kind, num_codes, num_books, values.num_queries, values.spread, values.seed
        made_codes.make_codes(folder, *made)
    leaves = values.num_leaves, values.recall
    seconds, peak = machine.apart(build, folder, *leaves)
    path = folder / "index"
    size = _bytes_on_disk(path)
    manifest = json.loads((path / "manifest.json").read_text())
    chosen = f", {manifest['leaves_to_search']} searched for recall {values.recall}"
    print(
        f"\n{num_codes:,} {values.kind} codes of {4 * num_books} bits, "
        f"{manifest['num_distinct_codes']:,} distinct, {values.num_leaves} leaves"
        f"{chosen if values.recall else ''}: built in "
        f"{seconds:.0f} s with {peak:.0f} MiB at most; {size / num_codes:.1f} bytes an image on "
        f"disk, {size / 2**20:.0f} MiB\n"
    )
    own = [manifest["leaves_to_search"]] if values.recall else values.leaves_to_search
    _measure(path, folder, values, own if values.num_leaves else [0])


def keep_nearest_floats(folder, images, queries, k):
    """Writes the rows of the k images nearest to each query, both float [n, E]."""
    found = retrieval.nearest_embeddings_by_chunk(queries, images, k)
    np.save(folder / "nearest_floats.npy", np.concatenate([part.rows.numpy() for part in found]))


def _measure(path, folder, values, leaves):
    print(f"k = {values.k}, {values.num_queries} queries\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    for name, figures in compare(path, folder, leaves, values.rivals, values.k, values.turns):
        _print(name, figures)


def main(_):
    values = flags.FLAGS
    for library in values.rivals:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"--rivals: {library} is not installed; pip install {library}")
    print(machine.hardware())
    with tempfile.TemporaryDirectory(dir=values.folder) as name:
        folder = pathlib.Path(name)
        if values.index:
            queries = np.load(values.embeddings, allow_pickle=False)[: values.num_queries]
            np.save(folder / "queries.npy", queries)
            manifest = json.loads(pathlib.Path(values.index, "manifest.json").read_text())
            leaves = values.leaves_to_search if manifest["num_leaves"] else [0]
            _measure(pathlib.Path(values.index), folder, values, leaves)
            return
        for num_codes in values.num_codes:
            for num_books in values.books:
                part = folder / f"{num_codes}-{num_books}"
                part.mkdir()
                _measure_made(values, num_codes, num_books, part)
                shutil.rmtree(part)


if __name__ == "__main__":
    flags.DEFINE_multi_integer("num_codes", [1_000_000], "sizes; may be repeated", lower_bound=100)
    flags.DEFINE_multi_integer("books", [4, 8, 16], "books of 16 words; may be repeated", 2)
    flags.DEFINE_enum("kind", "random", ["random", "clustered", "real"], "how the codes are made")
    flags.DEFINE_float("spread", 4.0, "of the words of a cluster; smaller is tighter", 0.1)
    flags.DEFINE_integer("seed", 0, "of the codes and queries")
    flags.DEFINE_integer("k", 10, "images that a query finds", lower_bound=1)
    flags.DEFINE_integer("num_queries", 256, "queries of a batch", lower_bound=EXACT_QUERIES)
    flags.DEFINE_integer("num_leaves", 0, "leaves of the index; 0: none", lower_bound=0)
    flags.DEFINE_multi_integer("leaves_to_search", [50], "leaves searched; may be repeated", 1)
    flags.DEFINE_float("recall", None, "instead: what chooses them as the index is built")
    flags.DEFINE_integer("turns", 5, "turns that each takes", lower_bound=1)
    flags.DEFINE_list("rivals", ["faiss"], "faiss, usearch and hnswlib, or some, or none")
    flags.DEFINE_string("folder", None, "where codes and index lie meanwhile; none: /tmp")
    flags.DEFINE_string("index", "", "an index that stands, instead of codes made here")
    flags.DEFINE_string("images", "", "float32 .npy [N, E], with --kind=real")
    flags.DEFINE_string(
        "embeddings", "", "float32 .npy of at least 20 queries for --index, or for --kind=real"
    )
    commands.run(main)
