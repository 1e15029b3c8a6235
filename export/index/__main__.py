"""Writes the searchable index of a set of images, or changes it.

`python -m export.index --codes=codes/ --output=index/`
"""

import functools
import pathlib
import sys
import tempfile

import numpy as np
from absl import flags

from export import folders
from export.codes import read_rejects, read_shards
from export.encode import encode_plan, inputs, streaming
from export.encoder import load_encoder
from export.index import (
    MOST_KEPT,
    check_form,
    check_replaceable,
    collection,
    load_index,
    store,
    write_collection,
)
from export.index.scann import NUM_WORDS
from export.kept import KINDS, row_bytes
from hqc_tf import commands
from hqc_tf.errors import UserError, counted

# A warning says so where there are so many images to each distinct code.
FEW_CODES = 4


def _contents(values, folder):
    """Arguments of `write_collection`, but for the path, that the command's flags stand for.

    `folder` is empty and takes the codes of --dataset.
    """
    old = load_index(values.output) if values.append or values.remove else None
    form = _form(values, old.manifest if old else {})
    images = old and collection.of_index(old)
    if values.remove:
        images = images.without(collection.read_ids(values.remove))
    if old and values.keep:
        images = images.keeping(values.keep, f"--output={values.output}")
    if not (values.codes or values.dataset):
        return old.codebooks, images, old.manifest["encoder"], *form
    check = functools.partial(_check_added, values, old, form)
    if values.dataset:
        _encode(values, old, folder, check)
    shards = read_shards(values.codes or folder)
    if values.codes:
        check(shards.codebooks, shards.encoder["fingerprint"], shards.job)
    added = collection.of_shards(shards.shards, shards.job, shards.keep)
    keep = values.keep or _agreed(values, old, added)
    added = added.keeping(keep, f"--codes={values.codes}")
    kept = images and images.keeping(keep, f"--output={values.output}")
    images = (kept + added if old else added).once(values.on_duplicate_id)
    return shards.codebooks, images, shards.encoder, *form


def _form(values, before):
    """Leaves, how many are searched, kind, and the recall that chooses what is searched."""
    leaves, to_search, recall = _leaves(values, before)
    return leaves, to_search, values.kind or before.get("kind", ""), recall


def _leaves(values, before):
    """Leaves, how many are searched, and the recall that chooses this: as before where not said."""
    to_search, recall = values.leaves_to_search, values.recall
    if values.num_leaves is not None:
        return values.num_leaves, to_search, recall
    if to_search is None and recall is None:
        recall = before.get("recall")
        to_search = before.get("leaves_to_search") or None if recall is None else None
    return before.get("num_leaves", 0), to_search, recall


def _agreed(values, old, added):
    """How embeddings are kept where no flag says: as all images have them, else not at all."""
    if not old:
        many = values.dataset and added.num_images > MOST_KEPT
        return "none" if many else added.keep
    if old.keep in ("none", added.keep):
        return old.keep
    print(
        f"--codes={values.codes}: keeps no embeddings as {old.keep}, so the index keeps none any "
        f"more; export.encode --keep={old.keep} keeps them",
        file=sys.stderr,
    )
    return "none"


def _encode(values, old, folder, check):
    """Encodes --dataset into shards in `folder`; names what is left out."""
    keep = values.keep or (old.keep if old else "int8")
    encoder = load_encoder(values.saved_model)
    own = {"data_dir": values.data_dir, "id_prefix": values.id_prefix}
    plan = inputs.make_plan(values.dataset, folder, **own)._replace(keep=keep)
    # Before the long work.
    check(encoder.codebooks, encoder.manifest["fingerprint"], plan.job)
    stop = functools.partial(streaming.encode_here, on_bad_image=values.on_bad_image)
    encode_plan(encoder, plan, folder, stop)
    streaming.name_rejects(read_rejects(folder))


def _check_added(values, old, form, codebooks, fingerprint, source):
    """UserError where codes do not join the index `old`, or do not make one of this `form`."""
    if old:
        _check_joins(values, old, codebooks, fingerprint)
    elif not values.replace:
        _check_replaced(values, source)
    num_leaves, to_search, kind, recall = form
    check_form(codebooks.shape[1], num_leaves, to_search, kind, recall)


def _check_joins(values, old, codebooks, fingerprint):
    old.check_encoder(fingerprint)
    if not np.array_equal(codebooks, old.codebooks):
        raise UserError(
            f"{values.codes or values.saved_model}: its codebooks are not those of index "
            f"{old.path}, but must be, as the encoder is the same: a file is damaged; restore a "
            "copy, or write it anew"
        )


def _check_replaced(values, source):
    """UserError where an index of another source would be lost."""
    before = folders.read_manifest(values.output, store.FORMAT) or {}
    # A program that wrote its own arrays names none.
    inputs = before.get("inputs")
    if inputs and inputs != [source]:
        count = _num_images(before) or "an unknown number of"
        raise UserError(
            f"--output={values.output}: has {count} images "
            f"of {inputs}, not of {source}; give --append to add to them, --replace to lose them, "
            "or another --output"
        )


def _check_flags(values):
    if values.codes and (values.dataset or values.saved_model):
        raise UserError("--codes: goes without --saved_model and --dataset; give one or the other")
    if values.id_prefix and not values.dataset:
        raise UserError("--id_prefix: is for images; give it to export.encode, or with --dataset")
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
    # From before the old index is read, or what another process adds meanwhile would be lost.
    with folders.sole_writer(values.output), tempfile.TemporaryDirectory() as folder:
        before = folders.read_manifest(values.output, store.FORMAT)
        write_collection(values.output, *_contents(values, folder), locked=True)
    manifest = store.found_manifest(values.output, values.output)
    leaves = f", {manifest['num_leaves']} leaves" if manifest["num_leaves"] else ""
    if manifest["recall"] is not None:
        leaves += f", {manifest['leaves_to_search']} searched for recall {manifest['recall']}"
    replaced = before and not values.remove
    fewer = _num_images(before) - manifest["num_images"] if replaced else 0
    images = counted(manifest["num_images"], "image")
    codes = counted(manifest["num_distinct_codes"], "distinct code")
    print(
        f"{values.output}: {images} at {manifest['bits']} bits, {codes}{leaves}"
        f"{_describe_kept(manifest)}" + (f"; {fewer} fewer than before" if fewer > 0 else "")
    )
    _warn_of_few_codes(manifest)
    if manifest["kind"] == "scan" and manifest["num_words"] != NUM_WORDS:
        words = f"codebooks of {manifest['num_words']} words: exact tables scan all codes"
        print(f"{words}; ScaNN's faster search needs --num_words={NUM_WORDS}", file=sys.stderr)


def _num_images(before):
    """The number in the manifest of an index to replace, which may be damaged; 0 where it is."""
    count = before.get("num_images")
    return count if isinstance(count, int) else 0


def _describe_kept(manifest):
    if manifest["keep"] == "none":
        return ""
    size = row_bytes(manifest["keep"], manifest["num_books"] * manifest["word_dim"])
    return f", embeddings kept as {manifest['keep']} ({size} bytes an image)"


def _warn_of_few_codes(manifest):
    count, distinct = manifest["num_images"], manifest["num_distinct_codes"]
    if distinct * FEW_CODES > count:
        return
    told_apart = manifest["keep"] != "none"
    fix = "" if told_apart else "; --keep=int8 tells images of equal codes apart"
    print(
        f"{counted(distinct, 'distinct code')} for {count} images: many images have equal codes"
        f"{fix}. More bits (--num_books), a longer training or more images to train on help",
        file=sys.stderr,
    )


if __name__ == "__main__":
    flags.DEFINE_string("codes", "", "folder of codes that export.encode wrote")
    flags.DEFINE_string(
        "saved_model", "", "instead of --codes: what export.saved_model wrote; its newest version"
    )
    flags.DEFINE_string("dataset", "", "images for --saved_model, in the forms of hqc_tf.train")
    flags.DEFINE_string("id_prefix", "", "put before every id, such as phone/: ids stay unique")
    flags.DEFINE_enum(
        "on_bad_image", "skip", ["skip", "stop"], "skip and name undecodable images, or stop at one"
    )
    flags.DEFINE_string("data_dir", "", "where prepared TFDS data lies; empty: TFDS's own place")
    flags.DEFINE_string("output", None, "folder of the index; replaces an older one", required=True)
    flags.DEFINE_enum(
        "keep",
        "",
        ["", *KINDS],
        "also keep embeddings, by which export.search tells images of equal codes apart: int8, a "
        "byte a number, float16 or none; empty: as the index or --codes has them, and for "
        f"--dataset int8 up to {MOST_KEPT:,} images",
    )
    flags.DEFINE_bool("append", False, "add to the index at --output")
    flags.DEFINE_string(
        "remove",
        "",
        "file of ids to drop from the index at --output: one a line, ended by NUL characters, or "
        "as JSON a line in a .jsonl file",
    )
    flags.DEFINE_bool("replace", False, "replace an index of other images at --output")
    flags.DEFINE_enum(
        "on_duplicate_id",
        "error",
        collection.POLICIES,
        "images of one id with different codes: an error, replace (the newest stays), or keep (the "
        "oldest); with equal codes one stays",
    )
    flags.DEFINE_integer(
        "num_leaves", None, "parts that ScaNN divides the codes into, for millions; 0: none", 0
    )
    flags.DEFINE_integer("leaves_to_search", None, "leaves per query; default: a twentieth", 1)
    flags.DEFINE_float(
        "recall", None, "instead of --leaves_to_search: of a search of all leaves, such as 0.95"
    )
    flags.DEFINE_enum(
        "kind", "", ["", *store.KINDS], "how it is searched; empty: scann for books of 16 words"
    )
    commands.run(main)
