"""Writes the searchable index of a set of images, or changes it.

`python -m export.index --codes=codes/ --output=index/`
"""

import pathlib
import sys

from absl import flags

from export.arrays import pack_ids
from export.codes import Shard, read_shards
from export.encoder import encode_images, load_encoder
from export.index import check_replaceable, collection, load_index, store, write_collection
from hqc_tf import commands
from hqc_tf.data import catalog
from hqc_tf.errors import UserError


def _contents(values):
    """Arguments of `write_collection`, but for the path, that the command's flags stand for."""
    old = load_index(values.output) if values.append or values.remove else None
    images = old and collection.of_index(old)
    if values.remove:
        images = images.without(collection.read_ids(values.remove))
    if values.codes or values.dataset:
        codebooks, added, encoder = _added(values, old)
        images = images + added if old else added
    else:
        codebooks, encoder = old.codebooks, old.manifest["encoder"]
    leaves, to_search = values.num_leaves, values.leaves_to_search
    before = old.manifest if old else {}
    if leaves is None:
        leaves = before.get("num_leaves", 0)
        to_search = to_search or before.get("leaves_to_search") or None
    kind = values.kind or before.get("kind", "")
    return codebooks, images, encoder, leaves, to_search, kind


def _added(values, old):
    """Codebooks, `Collection` and encoder of --codes or --dataset; checked against index `old`."""
    if values.codes:
        shards = read_shards(values.codes)
        if old:
            old.check_encoder(shards.encoder["fingerprint"])
        return shards.codebooks, collection.of_shards(shards.shards), shards.encoder
    encoder = load_encoder(values.saved_model)
    if old:
        old.check_encoder(encoder.manifest["fingerprint"])
    images = catalog.load_images(values.dataset, values.data_dir)
    codes = encode_images(encoder, images).codes
    added = collection.of_shards([Shard(codes, pack_ids(images.ids))])
    return encoder.codebooks, added, encoder.identity


def _check_flags(values):
    if values.codes and (values.dataset or values.saved_model):
        raise UserError("--codes: goes without --saved_model and --dataset; give one or the other")
    if bool(values.dataset) != bool(values.saved_model):
        raise UserError("--saved_model and --dataset: go together; give both, or --codes")
    if not (values.codes or values.dataset or values.remove):
        raise UserError("nothing to index: give --codes, or --saved_model and --dataset")
    if values.append and not (values.codes or values.dataset):
        raise UserError("--append: needs --codes, or --saved_model and --dataset; add them")
    if values.remove and (values.codes or values.dataset) and not values.append:
        raise UserError("--remove: drops from the index at --output; add --append to add to it too")


def main(_: list[str]) -> None:
    values = flags.FLAGS
    _check_flags(values)
    check_replaceable(pathlib.Path(values.output))
    write_collection(values.output, *_contents(values))
    manifest = store.found_manifest(values.output, values.output)
    leaves = f", {manifest['num_leaves']} leaves" if manifest["num_leaves"] else ""
    print(
        f"{values.output}: {manifest['num_images']} images at {manifest['bits']} bits, "
        f"{manifest['num_distinct_codes']} distinct codes{leaves}"
    )
    if manifest["kind"] == "scan":
        words = f"codebooks of {manifest['num_words']} words: exact tables scan all codes"
        print(f"{words}; ScaNN's faster search needs --num_words=16", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("codes", "", "folder of codes that export.encode wrote")
    flags.DEFINE_string(
        "saved_model", "", "instead of --codes: what export.saved_model wrote; its newest version"
    )
    flags.DEFINE_string(
        "dataset", "", "images for --saved_model: folder:PATH, name or name/split of TFDS"
    )
    flags.DEFINE_string("data_dir", "", "where prepared TFDS data lies; empty: TFDS's own place")
    flags.DEFINE_string("output", None, "folder of the index; replaces an older one", required=True)
    flags.DEFINE_bool("append", False, "add to the index at --output")
    flags.DEFINE_string("remove", "", "file of ids, one a line, to drop from the index at --output")
    flags.DEFINE_integer(
        "num_leaves", None, "parts that ScaNN divides the codes into, for millions; 0: none", 0
    )
    flags.DEFINE_integer("leaves_to_search", None, "leaves per query; default: a twentieth", 1)
    flags.DEFINE_enum(
        "kind", "", ["", *store.KINDS], "how it is searched; empty: scann for books of 16 words"
    )
    commands.run(main)
