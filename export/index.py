"""The searchable index of a set of images: their learned codes, their ids and the exact search.

Equal codes are stored once, each with the rows of its images. ScaNN scans the codes with tables
rounded down to int8 and proposes candidates; exact tables re-rank them. ScaNN's distances are
therefore never too large, so a query is settled as soon as its exact k-th distance lies below
ScaNN's last; the others are asked again with more candidates. Thousands of images with the same
code would fill any list of candidates, which is why ScaNN sees a code only once.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hqc_tf import retrieval

FORMAT = "hqc-index"
FORMAT_VERSION = 1
SCANN_WORDS = 16  # ScaNN's fast tables have four bits
MIN_CANDIDATES = 100


class Found(NamedTuple):
    """What `Index.rows` finds, nearest first."""

    rows: np.ndarray  # [Q, k] int64
    distances: np.ndarray  # [Q, k] float32


@dataclasses.dataclass(frozen=True)
class Index:
    """An index in memory, as `load_index` gives it; the large arrays are memory-mapped.

    Attributes:
        path: folder it came from.
        manifest: counts, shape of the codes, and under "encoder" what made them.
        codebooks: [M, K, D] float32.
        distinct_codes: [U, M] uint8, every code that occurs, in lexical order.
        grouped_rows: [N] unsigned, the rows of the first code in rising order, then the second's.
        group_starts: [U+1] unsigned, where each code's rows begin in `grouped_rows`.
        id_bytes: [bytes] uint8, the ids in utf-8, one after the other in row order.
        id_starts: [N+1] int64, where each id begins in `id_bytes`.
        searcher: ScaNN's, or None where the number of words asks for a full exact scan.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    codebooks: np.ndarray
    distinct_codes: np.ndarray
    grouped_rows: np.ndarray
    group_starts: np.ndarray
    id_bytes: np.ndarray
    id_starts: np.ndarray
    searcher: Any

    @property
    def num_images(self) -> int:
        """N, the number of images."""
        return len(self.grouped_rows)

    @property
    def codes(self) -> np.ndarray:
        """[N, M] uint8, the code of every image; put together anew at each access."""
        codes = np.empty([self.num_images, self.distinct_codes.shape[1]], np.uint8)
        codes[self.grouped_rows] = np.repeat(
            self.distinct_codes, np.diff(self.group_starts), axis=0
        )
        return codes

    def check_encoder(self, fingerprint: str) -> None:
        """Raises ValueError unless `fingerprint` is that of the encoder that made the codes."""
        own = self.manifest["encoder"]
        if fingerprint != own["fingerprint"]:
            raise ValueError(
                f"index {self.path} belongs to encoder {own['fingerprint']} ({own['path']}), not "
                f"{fingerprint}: rebuild it with python -m export.index or search with its encoder."
            )

    def search(self, embeddings: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The k nearest images of each query by squared asymmetric distance; see `rows`.

        Returns:
            ids: Q lists of k str, nearest first.
            distances: [Q, k] float32.
        """
        rows, distances = self.rows(embeddings, k)
        return [[self._id(row) for row in query] for query in rows], distances

    def rows(self, embeddings: np.ndarray, k: int) -> Found:
        """As `search`, with row numbers for ids; exact, and ties go to the lower row.

        Args:
            embeddings: [Q, M*D] float, as the encoder gives them.
            k: 1 to N.

        Returns:
            `Found` with `.rows` [Q, k] int64 and `.distances` [Q, k] float32.

        Raises:
            ValueError: k is not in 1 to N, or the embeddings have another width or are not finite.
        """
        embeddings = self._checked_embeddings(embeddings, k)
        return self._nearest(embeddings, k, max(MIN_CANDIDATES, 2 * k))

    def _nearest(self, embeddings, k, num_candidates) -> Found:
        num_candidates = min(num_candidates, len(self.distinct_codes))
        step = max(1, retrieval.CHUNK_ELEMENTS // (num_candidates * len(self.codebooks)))
        chunks = np.split(embeddings, range(step, len(embeddings), step))
        parts = [self._nearest_in_chunk(chunk, k, num_candidates) for chunk in chunks]
        return Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _nearest_in_chunk(self, embeddings, k, num_candidates) -> Found:
        codes, distances, bounds = self._candidates(embeddings, num_candidates)
        found = self._expand(codes, distances, k)
        # Settled means strictly below, so that all ties at the k-th place are candidates; the
        # margin covers float32 rounding on both sides.
        unsettled = found.distances[:, -1] * (1 + 1e-5) >= bounds
        if num_candidates < len(self.distinct_codes) and unsettled.any():
            again = self._nearest(embeddings[unsettled], k, 8 * num_candidates)
            found.rows[unsettled], found.distances[unsettled] = again
        return found

    def _candidates(self, embeddings, count):
        """[Q, R] codes, [Q, R] exact distances, and [Q] what no other code's distance is below."""
        if self.searcher is None:
            codes, distances = retrieval.nearest(
                embeddings, self.distinct_codes, self.codebooks, count, "squared"
            )
            return codes.numpy(), distances.numpy(), distances.numpy()[:, -1]
        codes, lower_bounds = self.searcher.search_batched(embeddings, final_num_neighbors=count)
        tables = retrieval.distance_tables(embeddings, self.codebooks, "squared")
        distances = retrieval.candidate_distances(tables, self.distinct_codes[codes]).numpy()
        return codes, distances, lower_bounds[:, -1]

    def _expand(self, codes: np.ndarray, distances: np.ndarray, k: int) -> Found:
        """Puts the rows of [Q, R] codes in order of (distance, row) and keeps k of each query."""
        order = np.argsort(distances, axis=1)
        codes, distances = (np.take_along_axis(x, order, axis=1) for x in (codes, distances))
        starts = self.group_starts[codes].astype(np.int64)
        sizes = self.group_starts[codes + 1].astype(np.int64) - starts
        # A code may fill the places that strictly nearer ones leave; equally near codes all may,
        # for any of them can hold the lowest rows.
        nearer = np.cumsum(sizes, axis=1) - sizes
        nearer[:, 1:][distances[:, 1:] == distances[:, :-1]] = 0
        taken = np.clip(k - np.maximum.accumulate(nearer, axis=1), 0, sizes)
        ends = np.cumsum(taken)
        offsets = np.arange(ends[-1]) - np.repeat(ends - taken.ravel(), taken.ravel())
        rows = self.grouped_rows[np.repeat(starts, taken.ravel()) + offsets].astype(np.int64)
        distances = np.repeat(distances, taken.ravel())
        per_query = taken.sum(axis=1)
        queries = np.repeat(np.arange(len(codes)), per_query)
        firsts = np.cumsum(per_query) - per_query
        kept = np.lexsort((rows, distances, queries))[firsts[:, None] + np.arange(k)]
        return Found(rows[kept], distances[kept])

    def _id(self, row: int) -> str:
        return (
            self.id_bytes[self.id_starts[row] : self.id_starts[row + 1]]
            .tobytes()
            .decode("utf-8", "surrogatepass")
        )

    def _checked_embeddings(self, embeddings, k) -> np.ndarray:
        if not 1 <= k <= self.num_images:
            raise ValueError(
                f"k is {k}, but must lie in 1 to {self.num_images}, the number of images in "
                f"{self.path}: ask for fewer or index more."
            )
        embeddings = np.ascontiguousarray(embeddings, np.float32)
        num_books, _, word_dim = self.codebooks.shape
        if embeddings.shape != (max(1, len(embeddings)), num_books * word_dim):
            raise ValueError(
                f"embeddings have the shape {embeddings.shape}, but index {self.path} needs "
                f"[Q, {num_books * word_dim}], Q at least 1: embed the queries with its encoder."
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or infinity, but must be finite: mend the input.")
        return embeddings


def load_index(path: str | os.PathLike) -> Index:
    """Loads what `write_index` wrote, wherever the folder has been moved since.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no index, of another format version, or its files contradict its manifest.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: write an index with python -m export.index.")
    manifest = _read_manifest(path)
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"index {path} has format version {manifest['format_version']}, but this program "
            f"reads {FORMAT_VERSION}: rebuild it with python -m export.index."
        )
    num_images, num_codes, num_books = (
        manifest[name] for name in ("num_images", "num_distinct_codes", "num_books")
    )
    num_words, word_dim = manifest["num_words"], manifest["word_dim"]
    id_starts = _map_array(path, "id_starts", (num_images + 1,))
    return Index(
        path=path,
        manifest=manifest,
        codebooks=np.array(_map_array(path, "codebooks", (num_books, num_words, word_dim))),
        distinct_codes=_map_array(path, "hashed_dataset", (num_codes, num_books)),
        grouped_rows=_map_array(path, "grouped_rows", (num_images,)),
        group_starts=_map_array(path, "group_starts", (num_codes + 1,)),
        id_bytes=_map_array(path, "id_bytes", (int(id_starts[-1]),)),
        id_starts=id_starts,
        searcher=_load_searcher(path) if num_words == SCANN_WORDS else None,
    )


def write_index(
    path: str | os.PathLike,
    codebooks: np.ndarray,
    codes: np.ndarray,
    ids: Sequence[str],
    encoder: dict[str, Any],
) -> None:
    """Writes an index, whole or not at all; one that stands at `path` is replaced at the end.

    The index is written beside `path` and moved there once it is on the disk. Between the two
    renames that replace an older index, `path` is missing for an instant.

    Args:
        path: folder to make; it is missing, empty or an index.
        codebooks: [M, K, D] float32.
        codes: [N, M] uint8 below K, N at least 1.
        ids: N strings, any and not necessarily different.
        encoder: goes into the manifest; has "fingerprint" and "path", and JSON can hold it.

    Raises:
        ValueError: the arguments do not fit each other, or `path` holds something else.
    """
    path = pathlib.Path(path).resolve()
    _check_contents(codebooks, codes, ids, encoder)
    _check_replaceable(path)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_files(partial, path, codebooks, codes, ids, encoder)
        _replace(partial, path, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_files(folder, final_path, codebooks, codes, ids, encoder) -> None:
    distinct_codes, grouped_rows, group_starts = _group(codes)
    lengths = [len(name.encode("utf-8", "surrogatepass")) for name in ids]
    arrays = {
        "codebooks": codebooks,
        "hashed_dataset": distinct_codes,
        "grouped_rows": grouped_rows,
        "group_starts": group_starts,
        "id_bytes": np.frombuffer("".join(ids).encode("utf-8", "surrogatepass"), np.uint8),
        "id_starts": np.cumsum([0, *lengths], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    num_books, num_words, word_dim = codebooks.shape
    if num_words == SCANN_WORDS:
        _write_scann_files(folder, final_path, codebooks)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_images": len(codes),
        "num_distinct_codes": len(distinct_codes),
        "num_books": num_books,
        "num_words": num_words,
        "word_dim": word_dim,
        "bits": num_books * (num_words - 1).bit_length(),
        "distance": "squared",
        "encoder": encoder,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _group(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct codes, the rows sorted by code, and where each code's rows begin."""
    rows = np.lexsort(codes.T[::-1])  # stable, and a radix sort for bytes
    ordered = codes[rows]
    is_first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    starts = np.append(np.flatnonzero(is_first), len(codes))
    dtype = np.min_scalar_type(len(codes))
    return ordered[is_first], rows.astype(dtype), starts.astype(dtype)


def _write_scann_files(folder, final_path, codebooks) -> None:
    """Writes what ScaNN's own training would have left, with our words as its centers."""
    from google.protobuf import text_format
    from scann.proto import centers_pb2, scann_pb2

    num_books, num_words, word_dim = codebooks.shape
    centers = centers_pb2.CentersForAllSubspaces()
    for book in codebooks.tolist():
        subspace = centers.subspace_centers.add()
        for word in book:
            subspace.center.add(feature_type="FLOAT", feature_value_float=word)
    # Rounding down is what makes ScaNN's distances lower bounds.
    config = text_format.Parse(
        f"""
        num_neighbors: {MIN_CANDIDATES}
        distance_measure {{ distance_measure: "SquaredL2Distance" }}
        hash {{ asymmetric_hash {{
          projection {{
            projection_type: CHUNK
            input_dim: {num_books * word_dim}
            num_blocks: {num_books}
            num_dims_per_block: {word_dim}
          }}
          num_clusters_per_block: {num_words}
          lookup_type: INT8_LUT16
          use_residual_quantization: false
          fixed_point_lut_conversion_options {{ float_to_int_conversion_method: TRUNCATE }}
          quantization_distance {{ distance_measure: "SquaredL2Distance" }}
        }} }}""",
        scann_pb2.ScannConfig(),
    )
    (folder / "ah_codebook.pb").write_bytes(centers.SerializeToString())
    (folder / "scann_config.pb").write_bytes(config.SerializeToString())
    (folder / "scann_assets.pbtxt").write_text(_scann_assets(final_path), encoding="utf-8")


def _scann_assets(path: pathlib.Path) -> str:
    files = {"AH_CENTERS": "ah_codebook.pb", "AH_DATASET_NPY": "hashed_dataset.npy"}
    return "".join(
        f"assets {{\n  asset_type: {kind}\n"
        f"  asset_path: {json.dumps(str(path / name), ensure_ascii=False)}\n}}\n"
        for kind, name in files.items()
    )


def _load_searcher(path: pathlib.Path) -> Any:
    from scann.scann_ops.py import scann_ops_pybind

    # Not load_searcher: it takes absolute paths from scann_assets.pbtxt, which a move makes wrong.
    path = path.resolve()
    return scann_ops_pybind.ScannSearcher(
        scann_ops_pybind.scann_pybind.ScannNumpy(str(path), _scann_assets(path))
    )


def _replace(partial: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
    for file in [*partial.iterdir(), partial]:
        _sync(file)
    replaces = path.exists()
    if replaces:
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if replaces:
            old.rename(path)
        raise
    _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map_array(path: pathlib.Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    file = path / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): rebuild the index.") from error
    if array.shape != shape:
        raise ValueError(
            f"{file} has the shape {array.shape}, but the manifest says {shape}: rebuild the index."
        )
    return array


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] == FORMAT:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{path} is no index, it has no manifest.json of one: name a folder that "
        "python -m export.index wrote."
    )


def _check_replaceable(path: pathlib.Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        _read_manifest(path)
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, but an index is a folder: name another.")


def _check_contents(codebooks, codes, ids, encoder) -> None:
    if codebooks.ndim != 3 or codebooks.dtype != np.float32 or not np.isfinite(codebooks).all():
        raise ValueError(
            f"codebooks are {codebooks.dtype} {codebooks.shape}, but must be finite float32 "
            "[M, K, D]: pass those of a trained quantizer."
        )
    num_books, num_words, _ = codebooks.shape
    if codes.dtype != np.uint8 or codes.shape != (max(1, len(codes)), num_books):
        raise ValueError(
            f"codes are {codes.dtype} {codes.shape}, but must be uint8 [N, {num_books}], N at "
            "least 1: pass what these codebooks encoded."
        )
    if codes.max() >= num_words:
        raise ValueError(
            f"codes name word {codes.max()}, but the codebooks have words 0 to {num_words - 1}: "
            "pass what these codebooks encoded."
        )
    if len(ids) != len(codes):
        raise ValueError(f"{len(ids)} ids for {len(codes)} codes: pass one id for each code.")
    if not {"fingerprint", "path"} <= encoder.keys():
        raise ValueError(f"encoder is {encoder}, but must have fingerprint and path: add them.")
