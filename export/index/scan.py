"""The exact index type: every code by exact tables, whatever the number of words."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from hqc_tf import retrieval

# Codes whose distances are in memory at a time.
CHUNK = 2**20


class Scan(NamedTuple):
    """Proposes the nearest codes themselves."""

    codebooks: np.ndarray  # [M, K, D] float32
    codes: np.ndarray  # [U, M] uint8
    prefixes = None  # no leaves

    def propose(
        self, embeddings: np.ndarray, count: int, leaves: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest codes of each query, in memory for a part of them at a time.

        Returns:
            codes: [Q, count] int64 rows of `codes`, nearest first, ties to the lower row.
            bounds: [Q, count] float32, their squared asymmetric distances.
        """
        held = np.zeros([len(embeddings), 0], np.int64), np.zeros([len(embeddings), 0], np.float32)
        for start in range(0, len(self.codes), CHUNK):
            codes = self.codes[start : start + CHUNK]
            most = min(count, len(codes))
            found = retrieval.nearest(embeddings, codes, self.codebooks, most, "squared")
            rows = np.concatenate([held[0], start + found.rows.numpy()], axis=1)
            distances = np.concatenate([held[1], found.distances.numpy()], axis=1)
            order = np.argsort(distances, axis=1, kind="stable")[:, :count]
            held = tuple(np.take_along_axis(x, order, axis=1) for x in (rows, distances))
        return held


def write(
    folder: pathlib.Path, final_path: pathlib.Path, codebooks: np.ndarray, codes: np.ndarray,
    num_leaves: int, leaves_to_search: int,
) -> None:  # fmt: skip
    """Writes nothing: the files that every index has are enough."""


def load(
    folder: pathlib.Path, manifest: dict[str, Any], codebooks: np.ndarray, codes: np.ndarray
) -> Scan:
    """The proposer of an index in `folder`."""
    return Scan(codebooks, codes)
