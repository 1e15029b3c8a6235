"""Codes in memory, two words of up to 16 in a byte: half the bytes of the file that ScaNN reads."""

import dataclasses
import pathlib

import numpy as np

from export.arrays import array_chunks

MOST_WORDS = 16
# Rows of the file in memory at a time.
CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Packed:
    """[U, M] uint8 codes; `codes[places]` gives those of an array of places, or of a slice."""

    pairs: np.ndarray  # [U, ceil(M / 2)] uint8, the earlier book in the upper half of a byte
    num_books: int

    @property
    def shape(self) -> tuple[int, int]:
        """(U, M)."""
        return len(self.pairs), self.num_books

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, places) -> np.ndarray:
        pairs = self.pairs[places]
        codes = np.empty([*pairs.shape, 2], np.uint8)
        np.right_shift(pairs, 4, out=codes[..., 0])
        np.bitwise_and(pairs, 15, out=codes[..., 1])
        flat = codes.reshape(*pairs.shape[:-1], 2 * pairs.shape[-1])
        return flat[..., : self.num_books]

    def __array__(self, dtype=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def read(file: pathlib.Path, num_codes: int, num_books: int) -> Packed:
    """The codes in a .npy file, uint8 [U, M], whose words are under `MOST_WORDS`."""
    pairs = np.zeros([num_codes, -(-num_books // 2)], np.uint8)
    start = 0
    # Read, not mapped: what was looked at of a map counts as the process's memory.
    for codes in array_chunks(file, CHUNK):
        part = pairs[start : start + len(codes)]
        np.left_shift(codes[:, ::2], 4, out=part)
        part[:, : num_books // 2] |= codes[:, 1::2]
        start += len(codes)
    return Packed(pairs, num_books)
