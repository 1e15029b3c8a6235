"""Brings codes up to date with a folder of images that has changed: `export.encode --update`."""

import functools
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa

from export import folders
from export.arrays import pack_ids, unpack_id
from export.codes import Shard, is_begun, read_shards, write_shard
from export.encode import encode_plan, inputs, streaming
from export.encoder import Encoder
from export.kept import row_bytes
from hqc_tf.data.folder import read_items
from hqc_tf.errors import UserError


def update_codes(
    encoder: Encoder,
    source: str,
    folder: pathlib.Path,
    num_shards: int | None = None,
    batch_size: int = streaming.BATCH,
    on_bad_image: str = "skip",
    changed: Collection[str] = (),
    id_prefix: str = "",
) -> int:
    """Encodes the images of a folder or pattern that a complete folder of codes does not have.

    Images that are gone leave it, and the others keep their codes without being read: an image is
    known by its id. The new codes replace the old in one move; stopped before, the same call
    resumes, or begins anew where the files are others by then.

    Args:
        source: as the codes were made of, or where that folder is now, if it is gone there.
        folder: of the codes, an absolute path.
        num_shards, batch_size, on_bad_image, id_prefix: as of a new encoding.
        changed: ids whose files have changed since, which are read again.

    Returns:
        How many images were read.

    Raises:
        UserError: the codes are incomplete, or of another encoder or input; or `source` is neither
            a folder nor a pattern.
    """
    # A link would be replaced, not the folder that it leads to.
    folder = folder.resolve()
    # Before a lock is made beside what has no codes.
    read_shards(folder)
    folders.check_movable(folder)
    options = {"batch_size": batch_size, "on_bad_image": on_bad_image}
    with folders.sole_writer(folder):
        old, aside = read_shards(folder), aside_of(folder)
        _drop_left(folder, aside)
        plan = _plan(encoder, source, old, folder, aside, num_shards, id_prefix)
        known, read = _known(old, changed), []
        runner = functools.partial(_encode_unknown, **options, known=known, read=read)
        encode_plan(encoder, plan, str(aside), runner)
        folders.replace(aside, folder)
    return sum(read)


def _plan(encoder, source, old, folder, aside, num_shards, id_prefix):
    """What the new codes are made of; UserError where the old are of something else."""
    if is_begun(aside) and inputs.has_changed(source, aside):
        shutil.rmtree(aside)
    plan = inputs.make_plan(source, aside, num_shards, id_prefix=id_prefix)
    if not isinstance(plan.shards[0], inputs.Files):
        raise UserError(f"--update: {source} is neither folder:PATH nor a pattern; encode it anew")
    job = plan.job if _has_moved(old.job, plan.job) else old.job
    for name, was, now in [
        ("the encoder", old.encoder["fingerprint"], encoder.manifest["fingerprint"]),
        ("what is encoded", job, plan.job),
    ]:
        if was != now:
            raise UserError(f"--update: {name} of {folder} is {was}, not {now}; encode it anew")
    return plan._replace(keep=old.keep)


def _known(old, changed):
    """{packed id: its row, as bytes} of the images that are not read again."""
    known = {
        name: row.tobytes()
        for shard in old.shards
        for name, row in zip(shard.ids.to_pylist(), _rows_of(shard), strict=True)
    }
    for name in pack_ids(changed).to_pylist():
        known.pop(name, None)
    return known


def _has_moved(old, new):
    """Whether a folder that was encoded is gone, and is now said to be at another place."""
    if "folder" not in old or "folder" not in new:
        return False
    return old | {"folder": new["folder"]} == new and not pathlib.Path(old["folder"]).is_dir()


def aside_of(folder: pathlib.Path) -> pathlib.Path:
    """Where an update of a folder of codes is prepared; a stopped one leaves it.

    It is named by the number of the folder that it will replace. Once exchanged, the old codes have
    that name, and no later update, which replaces another folder, takes them for its own work.
    """
    return folder.with_name(f".{folder.name}.update-{folder.stat().st_ino}")


def _drop_left(folder, aside):
    """Removes what updates that were killed have left beside a folder, but for `aside`."""
    # Older versions wrote no number.
    pattern = re.compile(re.escape(f".{folder.name}.update") + r"(-\d+)?")
    for path in [*folder.parent.iterdir()]:
        if pattern.fullmatch(path.name) and path != aside:
            shutil.rmtree(path, ignore_errors=True)


def _encode_unknown(
    encoder: Encoder,
    plan: inputs.Plan,
    folder: str,
    numbers: Sequence[int],
    batch_size: int,
    on_bad_image: str,
    known: Mapping[bytes, bytes],
    read: list[int],
) -> None:
    """The runner: as `streaming.encode_here`, with the rows in `known`; counts in `read`."""
    num_books, _, word_dim = encoder.codebooks.shape
    width = num_books + row_bytes(plan.keep, num_books * word_dim)
    for number in numbers:
        part = plan.shards[number]
        begin = part.id_prefix.encode()
        names = [begin + name for name in inputs.names_of(part).to_pylist()]
        unknown = [unpack_id(name.removeprefix(begin)) for name in names if name not in known]
        items = inputs.named_by(part, read_items(part.root, unknown))
        shard, rejects = streaming.encode_items(encoder, items, batch_size, keep=plan.keep)
        streaming.check_rejects(rejects, on_bad_image)
        new = dict(zip(shard.ids.to_pylist(), map(bytes, _rows_of(shard)), strict=True))
        rows = [(name, known.get(name) or new.get(name)) for name in names]
        found = [(name, row) for name, row in rows if row]
        values = np.frombuffer(b"".join(row for _, row in found), np.uint8)
        values = values.reshape(len(found), width)
        ids = pa.array([name for name, _ in found], pa.large_binary())
        embeddings = None if plan.keep == "none" else values[:, num_books:]
        own = Shard(values[:, :num_books], ids, embeddings)
        write_shard(folder, number, len(plan.shards), own, rejects)
        read.append(len(unknown))


def _rows_of(shard):
    """Codes, and the embeddings kept beside them: uint8 [n, M + W]."""
    return shard.codes if shard.kept is None else np.hstack([shard.codes, shard.kept])
