"""Search at scale: `python -m benchmarks.search --num_codes=1000000 --books=4,8,16`

For each number of codes and of books (of 16 words) it makes codes in shards, builds an index from
them, loads it and queries it, in turns with FAISS on the same codebooks and codes and a NumPy table
scan, in the same run. Prints build time, peak memory, bytes an image on disk and in memory,
load time, queries/s single and batched, and recall@10 against the table scan, which is exact.

--kind=random: every code is as likely. --kind=clustered: each image is of one of 10,000 clusters; a
cluster has a normal center, and its images' words are drawn, book by book, with probabilities
softmax(-squared distance to the center / --spread); a query is a center with normal noise of 0.3.
--num_leaves then divides index and FAISS alike. --index measures an index that stands, with the
queries of --embeddings, beside FAISS with its codes.
"""

import json
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
from export.index.neighbors import MIN_CANDIDATES
from hqc_tf import commands, retrieval

K = 10
EXACT_QUERIES = 20
# As many candidates as ours has ranked by exact tables.
RERANK = MIN_CANDIDATES
COLUMNS = {
    "load, s": 1, "bytes in memory": 1, "queries/s, single": 0, "queries/s, batched": 0,
    "recall@10": 3,
}  # fmt: skip


def build(folder, num_leaves):
    """(seconds, peak MiB) of building folder/index from folder/codes."""
    before, start = machine.memory_mib(), time.perf_counter()
    read = read_shards(folder / "codes")
    images = collection.of_shards(read.shards)
    write_collection(folder / "index", read.codebooks, images, read.encoder, num_leaves)
    return time.perf_counter() - start, machine.memory_mib() - before


def measure_index(path, folder, leaves_to_search, calls):
    """Figures of the index at `path`, with the queries of `folder`."""
    queries = np.load(folder / "queries.npy")
    before, start = machine.memory_mib("RssAnon"), time.perf_counter()
    index = load_index(path)
    load = time.perf_counter() - start
    held = machine.memory_mib("RssAnon") - before
    found = {"load, s": load, "bytes in memory": held * 2**20 / index.num_images}
    search = lambda some: index.rows(some, K, leaves_to_search=leaves_to_search)  # noqa: E731
    return found | _rates(search, queries, calls) | _recall(search, folder)


def measure_faiss(path, folder, num_probes, rerank, calls):
    """The same of FAISS's fast scan over the codes of the index at `path`, re-ranked or not.

    Args:
        num_probes: leaves searched, of those of the index; 0: no leaves.
        rerank: candidates ranked by exact tables, as ours are; 0: as FAISS gives them.
    """
    import faiss

    index = load_index(path)
    codes, codebooks = index.codes, index.codebooks
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    before, start = machine.memory_mib("RssAnon"), time.perf_counter()
    searched = _faiss_index(faiss, index, codes, num_probes)
    load = time.perf_counter() - start
    held = machine.memory_mib("RssAnon") - before

    def search(queries):
        distances, rows = searched.search(queries, rerank or K)
        if rerank:
            tables = retrieval.distance_tables(queries, codebooks, "squared")
            distances = retrieval.candidate_distances(tables, codes[rows]).numpy()
            order = np.argsort(distances, axis=1)[:, :K]
            rows = np.take_along_axis(rows, order, axis=1)
        return rows

    def exact(queries):
        tables = retrieval.distance_tables(queries, codebooks, "squared")
        return None, retrieval.candidate_distances(tables, codes[search(queries)]).numpy()

    queries = np.load(folder / "queries.npy")
    found = {"load, s": load, "bytes in memory": held * 2**20 / index.num_images}
    return found | _rates(search, queries, calls) | _recall(exact, folder)


def scan(path, folder):
    """Runs an exact NumPy table scan, keeps its distances in `folder`, and gives its queries/s."""
    index = load_index(path)
    queries = np.load(folder / "queries.npy")[:EXACT_QUERIES]
    tables = retrieval.distance_tables(queries, index.codebooks, "squared").numpy()
    sizes = np.diff(index.group_starts).astype(np.int64)
    start = time.perf_counter()
    nearest = np.full([len(queries), K], np.inf, np.float32)
    for first in range(0, len(sizes), made_codes.SHARD):
        codes = index.distinct_codes[first : first + made_codes.SHARD].T.astype(np.intp)
        repeated = np.minimum(sizes[first : first + made_codes.SHARD], K)
        for number, table in enumerate(tables):
            distances = sum(table[book][words] for book, words in enumerate(codes))
            few = np.argpartition(distances, min(K, len(distances)) - 1)[:K]
            both = [nearest[number], np.repeat(distances[few], repeated[few])]
            nearest[number] = np.sort(np.concatenate(both))[:K]
    rate = len(queries) / (time.perf_counter() - start)
    np.save(folder / "nearest.npy", nearest)
    return {"queries/s, batched": rate, "recall@10": 1.0}


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


def _rates(search, queries, calls):
    """Queries/s, one at a time and all at once: medians of `calls` calls after one not counted."""
    found = {}
    for name, some in {"single": queries[:1], "batched": queries}.items():
        seconds = []
        for _ in range(1 + calls):
            start = time.perf_counter()
            search(some)
            seconds.append(time.perf_counter() - start)
        found[f"queries/s, {name}"] = len(some) / np.median(seconds[1:])
    return found


def _recall(search, folder):
    exact = np.load(folder / "nearest.npy")
    distances = search(np.load(folder / "queries.npy")[: len(exact)])[1]
    # Equal distances are equally right.
    return {"recall@10": float(np.mean(distances <= exact[:, -1:] * (1 + 1e-5)))}


def _bytes_on_disk(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def _rows(path, folder, leaves, calls, with_faiss):
    """(name, figures) of each way to search the index at `path`."""
    yield "NumPy table scan", machine.apart(scan, path, folder)
    for count in leaves:
        name = f"index, {count} leaves searched" if count else "index"
        yield name, machine.apart(measure_index, path, folder, count or None, calls)
        name = f"FAISS, {count} leaves searched" if count else "FAISS"
        for rerank in (0, RERANK) if with_faiss else ():
            suffix = ", re-ranked" if rerank else ""
            figures = machine.apart(measure_faiss, path, folder, count, rerank, calls)
            yield name + suffix, figures


def _print(name, figures):
    cells = [
        f"{figures[key]:.{digits}f}" if key in figures else "-" for key, digits in COLUMNS.items()
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _measure_made(values, num_codes, num_books, folder):
    made = values.kind, num_codes, num_books, values.num_queries, values.spread
    made_codes.make_codes(folder, *made)
    seconds, peak = machine.apart(build, folder, values.num_leaves)
    path = folder / "index"
    size = _bytes_on_disk(path)
    manifest = json.loads((path / "manifest.json").read_text())
    print(
        f"\n{num_codes:,} {values.kind} codes of {4 * num_books} bits, "
        f"{manifest['num_distinct_codes']:,} distinct, {values.num_leaves} leaves: built in "
        f"{seconds:.0f} s with {peak:.0f} MiB at most; {size / num_codes:.1f} bytes an image on "
        f"disk, {size / 2**20:.0f} MiB\n"
    )
    _measure(path, folder, values)


def _measure(path, folder, values):
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    leaves = values.leaves_to_search if values.num_leaves else [0]
    for name, figures in _rows(path, folder, leaves, values.calls, values.faiss):
        _print(name, figures)


def main(_):
    values = flags.FLAGS
    print(machine.hardware())
    with tempfile.TemporaryDirectory(dir=values.folder) as name:
        folder = pathlib.Path(name)
        if values.index:
            np.save(folder / "queries.npy", np.load(values.embeddings, allow_pickle=False))
            _measure(pathlib.Path(values.index), folder, values)
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
    flags.DEFINE_enum("kind", "random", ["random", "clustered"], "how the codes are made")
    flags.DEFINE_float("spread", 4.0, "of the words of a cluster; smaller is tighter", 0.1)
    flags.DEFINE_integer("num_queries", 256, "queries of a batch", lower_bound=EXACT_QUERIES)
    flags.DEFINE_integer("num_leaves", 0, "leaves of the index; 0: none", lower_bound=0)
    flags.DEFINE_multi_integer("leaves_to_search", [50], "leaves searched; may be repeated", 1)
    flags.DEFINE_integer("calls", 5, "calls that count", lower_bound=1)
    flags.DEFINE_bool("faiss", True, "measure FAISS too")
    flags.DEFINE_string("folder", None, "where codes and index lie meanwhile; none: /tmp")
    flags.DEFINE_string("index", "", "an index that stands, instead of codes made here")
    flags.DEFINE_string("embeddings", "", "float32 .npy of at least 20 queries for --index")
    commands.run(main)
