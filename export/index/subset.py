"""The images of an index that a filter lets through, and the index of these alone.

Few codes are scanned by exact tables, as are all of an index that has no faster way. Of many,
ScaNN names candidates among all codes, and those without an image in the subset have no rows.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from export.arrays import pack_ids
from export.index.ids import Ids
from export.index.scan import Scan
from hqc_tf.errors import UserError

# Codes with an image in the subset are scanned by themselves where they are at most 1 in so many.
# Of a million codes, ScaNN with more candidates takes as long there.
NARROW = 20
# Rows whose places are in memory at a time.
CHUNK = 2**20


class Subset(NamedTuple):
    """The images that `Index.subset` chose, as an index of their own."""

    index: Any  # `neighbors.Index` whose `grouped_rows` are those of the chosen images
    places: np.ndarray | None  # places of its codes in the whole index's; None: the same

    @property
    def num_images(self) -> int:
        """How many images are let through."""
        return self.index.num_images


Within = str | Collection[str] | np.ndarray | Subset


def make_mask(ids: Ids, within: str | Collection[str] | np.ndarray) -> np.ndarray:
    """Which images a filter lets through, bool [N].

    Args:
        ids: [N] packed.
        within: what an id begins with; or ids, of which some may be of no image; or bool [N].

    Raises:
        UserError: an array is not bool [N].
    """
    if isinstance(within, np.ndarray):
        if within.dtype != bool or within.shape != (len(ids),):
            raise UserError(
                f"within is {within.dtype} {within.shape}, but must be bool [{len(ids)}], one for "
                "each image: pass a mask over the rows, ids, or what ids begin with."
            )
        return within
    if isinstance(within, str):
        beginning = within.encode("utf-8", "surrogatepass")
        return np.concatenate([pc.starts_with(part, beginning) for part in ids.parts()])
    wanted = pack_ids(within)
    return np.concatenate([pc.is_in(part, value_set=wanted) for part in ids.parts()])


def choose(index: Any, mask: np.ndarray) -> Subset:
    """The `Subset` of a `neighbors.Index` of which bool [N] `mask` is true."""
    rows, starts = index.grouped_rows, np.zeros(len(index.group_starts), np.int64)
    kept = np.concatenate(
        [mask[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK)]
    )
    starts = np.append(0, np.cumsum(kept))[index.group_starts.astype(np.int64)]
    chosen = dataclasses.replace(index, grouped_rows=rows[kept], group_starts=starts)
    places = np.flatnonzero(np.diff(starts))
    is_narrow = len(places) * NARROW <= len(index.distinct_codes)
    if not is_narrow and not isinstance(index.proposer, Scan):
        return Subset(chosen, None)
    codes = index.distinct_codes[places]
    scan = Scan(index.codebooks, codes)
    starts = np.append(starts[places], len(chosen.grouped_rows))
    narrow = dataclasses.replace(chosen, distinct_codes=codes, group_starts=starts, proposer=scan)
    return Subset(narrow, places)
