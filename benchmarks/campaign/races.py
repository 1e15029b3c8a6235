"""Writers and readers of one index at once: nothing is lost, and each load is old or new.

Processes append and remove images of their own, again where another one holds the lock, while
others load the index.
"""

import concurrent.futures
import multiprocessing
import pathlib
import tempfile
import time

import numpy as np

from benchmarks.campaign import stage
from benchmarks.campaign.in_process import run
from benchmarks.campaign.row import Row, must
from export import codes
from export.arrays import pack_ids, unpack_id
from export.index import load_index

WRITERS, READERS = 2, 2
# Images of an append.
IMAGES = 50


def attack(folder: pathlib.Path, seed: int, count: int, ends: float) -> Row:
    """`count` appends by each writer, of which every second is removed again."""
    row = Row(f"{WRITERS} writers and {READERS} readers of an index")
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as own,
        concurrent.futures.ProcessPoolExecutor(WRITERS + READERS, context) as pool,
    ):
        own = pathlib.Path(own)
        stage.lay(folder / "index", own / "index")
        base = _ids(own / "index")
        readers = [pool.submit(_read, own, base, number) for number in range(READERS)]
        writers = [pool.submit(_write, own, seed, number, count, ends) for number in range(WRITERS)]
        try:
            rows, kept = zip(*(writer.result() for writer in writers), strict=True)
        finally:
            (own / "stop").touch()
        for each in [*rows, *(reader.result() for reader in readers)]:
            row.add(each)
        with row.case("the end"):
            must(_ids(own / "index") == sorted([*base, *sum(kept, [])]), "images are lost or back")
    return row


def _write(own, seed, number, count, ends):
    """A `Row`, and the ids that must be there in the end."""
    row, rng = Row("writer"), np.random.default_rng([seed, number])
    index = load_index(own / "index")
    kept, flags = [], [f"--output={own}/index"]
    for turn in range(count):
        if time.monotonic() > ends:
            break
        ids = [f"{number}/{turn}/{row}" for row in range(IMAGES)]
        made, names = own / f"codes{number}", own / f"names{number}.txt"
        shard = codes.Shard(rng.integers(0, 16, [IMAGES, 2], np.uint8), pack_ids(ids))
        codes.start(made, index.codebooks, index.manifest["encoder"], 1, {"own": f"{number}"})
        codes.write_shard(made, 0, 1, shard, [])
        with row.case(f"append {turn}"):
            _until_done(f"--codes={made}", "--append", *flags)
            kept += ids
        if turn % 2:
            names.write_text("\n".join(ids))
            with row.case(f"removal {turn}"):
                _until_done(f"--remove={names}", *flags)
                kept = kept[:-IMAGES]
    return row, kept


def _until_done(*arguments):
    while True:
        done = run("export.index", *arguments)
        if done.status == 0:
            return
        must(done.status == 2 and "another process is writing it" in done.stderr, done.stderr)
        time.sleep(0.01)


def _read(own, base, number):
    row = Row("reader")
    while not (own / "stop").exists():
        with row.case(f"load {row.tried} of reader {number}"):
            found = _ids(own / "index")
            must(len(set(found)) == len(found), "an image is there twice")
            must(set(base) <= set(found), "an image is lost")
            appends = [name.rpartition("/")[0] for name in set(found) - set(base)]
            must(all(appends.count(one) == IMAGES for one in set(appends)), "half an append")
    return row


def _ids(path):
    return sorted(map(unpack_id, load_index(path).ids.to_pylist()))
