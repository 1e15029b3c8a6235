"""The searchable index of a set of images: `python -m export.index --codes=codes/ --output=index/`

A folder of the learned codes and codebooks as they are, with the images' ids and a manifest.
Nothing is trained a second time but the centers of `--num_leaves`. Equal
codes are stored once, each with the rows of its images.
"""

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from export import folders, kept
from export.arrays import pack_ids
from export.codes import Shard
from export.index import collection, store
from export.index.neighbors import Index
from export.index.scann import NUM_WORDS
from hqc_tf import files
from hqc_tf.errors import UserError, printable

# One leaf in so many is searched by a query that does not say.
LEAVES_PER_SEARCHED = 20
# Up to so many images embeddings are kept where nothing is said.
MOST_KEPT = 1_000_000


def load_index(path: str | os.PathLike) -> Index:
    """Loads an index, wherever the folder has been moved since, and checks every byte of it.

    Raises:
        UserError: there is no such folder, it is not an index or of another format version, or a
            file of it is damaged; the file is named.
    """
    path = pathlib.Path(path)
    folders.restore(path)
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{path} is not a folder: write an index with python -m export.index."
            ) from error
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; make it readable") from error
        # A newer index may replace this one meanwhile, and this one be removed.
        try:
            return store.read_files(path, pathlib.Path(f"/proc/self/fd/{descriptor}"))
        except Exception:
            with contextlib.suppress(FileNotFoundError):
                if not os.path.samestat(os.fstat(descriptor), path.stat()):
                    continue
            raise
        finally:
            os.close(descriptor)


def write_index(
    path: str | os.PathLike,
    codebooks: np.ndarray,
    codes: np.ndarray,
    ids: Sequence[str],
    encoder: dict[str, Any],
    num_leaves: int = 0,
    leaves_to_search: int | None = None,
    kind: str = "",
    embeddings: np.ndarray | None = None,
    keep: str = "int8",
    recall: float | None = None,
) -> None:
    """Writes an index atomically; one that exists at `path` is replaced at the end.

    Args:
        path: folder to make; it is missing, empty or an index.
        codebooks: [M, K, D] float32.
        codes: [N, M] uint8 below K, N at least 1.
        ids: N strings, any and not necessarily different.
        encoder: goes into the manifest; has "fingerprint" and "path", and JSON can hold it.
        num_leaves: of ScaNN's tree, 0 for none; at most the number of distinct codes.
        leaves_to_search: by a query that does not say; None: a twentieth.
        kind: "scann", "scan" (exact tables over all codes), or empty: scann for books of 16 words.
        embeddings: [N, M*D] float, kept for `Index.rows` to rescore by; None: none.
        keep: how, "int8" or "float16".
        recall: of a search of all leaves, above 0 and at most 1; chooses `leaves_to_search`, which
            is None then, on queries like the images.

    Raises:
        ValueError: the arguments do not fit each other, or `path` holds something else.
    """
    if len(ids) != len(codes):
        raise ValueError(f"{len(ids)} ids for {len(codes)} codes: pass one id for each code.")
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(codebooks):
        raise ValueError(
            f"codes are {codes.dtype} {codes.shape}, but must be uint8 [N, {len(codebooks)}]: "
            "pass what these codebooks encoded."
        )
    width = codebooks.shape[0] * codebooks.shape[2]
    if embeddings is not None and np.shape(embeddings) != (len(codes), width):
        raise ValueError(
            f"embeddings have the shape {np.shape(embeddings)}, but must be [{len(codes)}, "
            f"{width}]: pass what the codes were made of."
        )
    own = None if embeddings is None else kept.pack(embeddings, keep)
    shards = [Shard(codes, pack_ids(ids), own)]
    images = collection.of_shards(shards, keep="none" if own is None else keep)
    leaves = num_leaves, leaves_to_search
    write_collection(path, codebooks, images, encoder, *leaves, kind, recall)


def write_collection(
    path: str | os.PathLike,
    codebooks: np.ndarray,
    images: collection.Collection,
    encoder: dict[str, Any],
    num_leaves: int = 0,
    leaves_to_search: int | None = None,
    kind: str = "",
    recall: float | None = None,
    locked: bool = False,
) -> None:
    """As `write_index`, of a `Collection`, which is read part by part; `locked`: `new_folder`'s."""
    path = pathlib.Path(path).resolve()
    _check_contents(codebooks, images, encoder)
    kind = check_form(codebooks.shape[1], num_leaves, leaves_to_search, kind, recall)
    check_replaceable(path)
    leaves = num_leaves, leaves_to_search or -(-num_leaves // LEAVES_PER_SEARCHED)
    with folders.new_folder(path, locked) as folder:
        store.write_files(folder, path, codebooks, images, encoder, kind, *leaves, recall)


def check_replaceable(path: pathlib.Path) -> None:
    """Raises UserError unless an index can be written: `path` is missing, empty or an index."""
    if path.is_dir() and any(path.iterdir()):
        store.found_manifest(path, path)
    elif path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but an index is a folder: name another.")
    folders.check_movable(path)
    # ScaNN's list of files names it.
    if not files.is_utf8(str(path.absolute())):
        name = printable(str(path.absolute()))
        raise UserError(f"{name}: a folder's name must be UTF-8; rename it, or take another")


def _check_contents(codebooks, images, encoder) -> None:
    if codebooks.ndim != 3 or codebooks.dtype != np.float32 or not np.isfinite(codebooks).all():
        raise ValueError(
            f"codebooks are {codebooks.dtype} {codebooks.shape}, but must be finite float32 "
            "[M, K, D]: pass those of a trained quantizer."
        )
    if not images.num_images:
        raise UserError("there is no code to index, but N must be at least 1: encode images first.")
    if not {"fingerprint", "path"} <= encoder.keys():
        raise ValueError(f"encoder is {encoder}, but must have fingerprint and path: add them.")


def check_form(
    num_words: int, num_leaves: int, leaves_to_search: int | None, kind: str, recall: float | None
) -> str:
    """The kind of index that `write_index` writes of K words; UserError where one does not fit."""
    _check_recall(recall, num_leaves, leaves_to_search)
    kind = kind or ("scann" if num_words == NUM_WORDS else "scan")
    if kind == "scann" and num_words != NUM_WORDS:
        raise UserError(
            f"--kind=scann: ScaNN searches books of {NUM_WORDS} words, and these have {num_words}; "
            "take scan, or train with --num_words=16"
        )
    if num_leaves and kind != "scann":
        raise UserError(
            f"--num_leaves={num_leaves}: needs --kind=scann, and this is {kind} of {num_words} "
            f"words; leave it out, or take scann with books of {NUM_WORDS} words"
        )
    if leaves_to_search is not None and not 1 <= leaves_to_search <= num_leaves:
        raise UserError(
            f"--leaves_to_search={leaves_to_search}: must be 1 to --num_leaves, {num_leaves}; "
            "change one of them"
        )
    return kind


def _check_recall(recall, num_leaves, leaves_to_search) -> None:
    if recall is None:
        return
    if not 0 < recall <= 1:
        raise UserError(f"--recall={recall}: must be above 0 and at most 1, such as 0.95")
    if not num_leaves:
        raise UserError(f"--recall={recall}: an index without leaves finds all; add --num_leaves")
    if leaves_to_search is not None:
        raise UserError(
            f"--recall={recall}: chooses --leaves_to_search, {leaves_to_search}; give one of them"
        )
