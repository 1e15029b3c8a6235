"""A folder of photos to a searchable collection in one call: `python -m hqc_tf.collection`.

The stages are those of the other commands, and so is what they leave in the folder of the
collection:

    features/        vectors of a pretrained network, where there is one
    run/             the training
    serving/         the encoder
    codes/           codes and embeddings of all images
    photos.jsonl     the files that these are of
    index/           what export.search searches
    neighbors.png    some photos and their neighbors
    report.html      about the training

Made again, it takes in photos that are new, changed or gone, without another training.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
from typing import Any, NamedTuple

from export import versions
from export.codes import read_shards
from export.encode import encode_plan, inputs
from export.encode.update import aside_of, update_codes
from export.encoder import load_encoder
from export.gallery import draw_queries, make_gallery
from export.index import MOST_KEPT, collection, load_index, write_collection
from export.saved_model import export_encoder
from hqc_tf import backbones, config, embed, files, workdir
from hqc_tf.collection.choice import VIEWS, Choice, check_count, choose, find_weights
from hqc_tf.data import catalog
from hqc_tf.data.features.shards import MANIFEST
from hqc_tf.data.folder import finds
from hqc_tf.errors import UserError, check_packages, counted, naming_a_full_disk, naming_damage
from hqc_tf.report import write_report
from hqc_tf.train import train_and_evaluate
from hqc_tf.training.inputs import describe_changes
from hqc_tf.training.state import newest_step

PHOTOS, CHOICE = "photos.jsonl", "choice.json"
_GALLERY, _REPORT = "neighbors.png", "report.html"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A line of photos.jsonl: a file of which the collection has a code."""

    name: str
    bytes: int
    modified: int  # nanoseconds since 1970


class Made(NamedTuple):
    """A collection as `make_collection` leaves it."""

    folder: pathlib.Path
    num_images: int
    results: list[workdir.Result]  # of its training
    num_read: int  # images that were encoded now


def make_collection(source: str, output: str | os.PathLike, **given: Any) -> Made:
    """Makes a collection of the photos of a folder or pattern, or brings it up to date.

    Stopped at any moment, the same call resumes.

    Args:
        source: folder:PATH or a pattern of files.
        output: folder of the collection, made where it is missing.
        **given: settings, by the names of `config.Config`, that go before those of
            `choice.choose`.

    Raises:
        UserError: there are too few photos, a setting does not fit, the collection is of other
            photos or settings, a new one lies among the photos, a package is missing, or the disk
            is full.
    """
    files.check_folder_name(output, "--output=")
    source, given = catalog.absolute(source), _absolute(given)
    parsed = catalog.parse(source)
    if parsed.kind not in ("folder", "pattern"):
        raise UserError(f"{source}: not photos in files; give folder:PATH or a pattern in quotes")
    needed = "matplotlib", "scann", "tensorflow_serving"
    check_packages("a collection", needed, "search,serving,report")
    folder = pathlib.Path(output)
    is_new = not (folder / CHOICE).exists()
    if is_new and finds(parsed.name, parsed.kind == "folder", folder / _GALLERY):
        raise UserError(
            f"--output={folder}: lies in {source}, where its pictures would be photos; take a "
            "folder outside"
        )
    photos = _list_photos(parsed)
    if is_new:
        check_count(source, len(photos))
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"--output={folder}: another process is making it; wait until it has ended"
    with files.sole_holder(folder / ".lock", refusal), naming_a_full_disk(folder):
        choice = _choice(source, len(photos), folder, given)
        results = _train(choice, folder)
        serving = _export(choice, folder)
        read = _encode(serving, source, photos, folder)
        count = _index(folder)
        _draw(serving, source, folder)
    return Made(folder, count, results, read)


def _absolute(given):
    """Settings whose paths are the same from anywhere, as the collection keeps them."""
    found = dict(given)
    if "backbone" in found:
        found["backbone"] = backbones.absolute(found["backbone"])
    if pathlib.Path(found.get("backbone_weights", "none")).is_file():
        found["backbone_weights"] = str(pathlib.Path(found["backbone_weights"]).absolute())
    return found


def _list_photos(source):
    found = []
    for name in source.files():
        try:
            status = (source.root / name).stat()
        except OSError:
            continue  # a reject of the encoding
        found.append(Photo(name, status.st_size, status.st_mtime_ns))
    return found


def _choice(source, count, folder, given):
    """The choice that the collection began with, or a new one, which is kept."""
    file = folder / CHOICE
    if file.exists():
        return _kept_choice(file, source, given)
    # Hidden ones are the lock, and what a killed process was writing.
    names = (path.name for path in folder.iterdir())
    if others := sorted(name for name in names if not name.startswith(".")):
        raise UserError(f"--output={folder}: holds {others[0]}, no collection; name a new folder")
    features = str((folder / "features").absolute())
    choice = choose(source, count, given, features, find_weights())
    settings = [part and dataclasses.asdict(part) for part in (choice.embedding, choice.training)]
    kept = {"source": source, "embedding": settings[0], "training": settings[1], "given": given}
    files.replace_text(file, json.dumps(kept))
    _say(f"photos: {counted(count, 'file')} of {source}")
    for line in choice.reasons:
        _say(line)
    _say(f"search: exact over codes, then by embeddings kept as int8 ({_describe_kept(count)})")
    _say(f"output: {folder}, with run, serving, codes, index, {_GALLERY} and {_REPORT}")
    return choice


def _describe_kept(count):
    return "in the index" if count <= MOST_KEPT else f"not over {MOST_KEPT:,} images"


def _kept_choice(file, source, given):
    with naming_damage(file, "restore a copy, or make the collection in a new folder"):
        kept = json.loads(file.read_text())
        before, own = kept["source"], kept["given"]
        if before != source:
            if not _has_moved(before, source):
                raise UserError(
                    f"{source}: the collection at {file.parent} is of {before}; name that"
                )
            kept |= {"source": source}
            if not workdir.read_metrics(file.parent / "run"):
                # A training that is done keeps the folder that it read.
                of_photos = "embedding" if kept["embedding"] else "training"
                kept |= {of_photos: kept[of_photos] | {"dataset": source}}
            files.replace_text(file, json.dumps(kept))
        parts = [kept[name] and config.Config(**kept[name]) for name in ("embedding", "training")]
    for name, value in given.items():
        if own.get(name) != value:
            raise UserError(
                f"--{name}={value}: the collection at {file.parent} was made with "
                f"{own.get(name, 'the default')}; leave it out, or name another --output"
            )
    return Choice(*parts, [])


def _has_moved(before, source):
    """Whether a folder is gone from where it was, and another one is named."""
    kinds = {catalog.parse(each).kind for each in (before, source)}
    return kinds == {"folder"} and not catalog.parse(before).root.is_dir()


def _train(choice, folder):
    run = folder / "run"
    if not workdir.read_metrics(run):
        if choice.embedding:
            _embed(choice.embedding, folder / "features")
        else:
            _check_photos(choice.training.dataset, run, newest_step(run) is not None)
        _say("training")
    return train_and_evaluate(choice.training, run)


def _embed(settings, features):
    done, count = embed.count_shards(features)
    # Training on features reads no photo, and these may have changed since.
    if done == count > 0:
        return
    _check_photos(settings.dataset, features, done > 0)
    _say("embedding")
    embed.embed_dataset(settings, str(features), VIEWS)


def _check_photos(source, stage, has_saved):
    """Begins a stage anew over photos that have changed; UserError where it has saved work."""
    before = workdir.read_files(stage)
    changes = describe_changes(source, before, workdir.rejected_ids(stage))
    if not changes:
        return
    if has_saved:
        raise UserError(
            f"{source}: not the photos that {stage} was begun with: {changes}; restore them until "
            "it is complete, or name a new --output"
        )
    _say(f"photos have changed, {stage.name} begins anew: {changes}")
    # The list last: until it is gone, the next call does the same.
    for name in (MANIFEST, workdir.FLAGFILE, workdir.REJECTS, workdir.FILES):
        (stage / name).unlink(missing_ok=True)


def _export(choice, folder):
    serving = folder / "serving"
    # A stopped export leaves the folder without a version.
    if not versions.versions(serving):
        _say("exporting the encoder")
        backbone = choice.embedding.backbone if choice.embedding else ""
        export_encoder(folder / "run", serving, backbone=backbone)
    return load_encoder(serving)


def _encode(encoder, source, photos, folder):
    """Encodes what is not encoded as it is now; returns how many images were read."""
    codes, done, begun = (folder / "codes").absolute(), folder / PHOTOS, folder / f".{PHOTOS}"
    read = 0
    if not done.exists():
        _say("encoding")
        if not begun.exists():
            files.write_lines(begun, photos)
        keep = "int8" if len(photos) <= MOST_KEPT else "none"
        # A resumed encoding keeps to the files that it began with.
        encode_plan(encoder, inputs.make_plan(source, codes)._replace(keep=keep), codes)
        read = len(files.read_lines(begun, Photo))
        begun.replace(done)
    before = {photo.name: photo for photo in files.read_lines(done, Photo)}
    root = str(catalog.parse(source).root)
    is_elsewhere = read_shards(codes).job.get("folder", root) != root
    if photos != [*before.values()] or is_elsewhere:
        _say("encoding what has changed")
        if files.read_lines(begun, Photo) != photos:
            # What a stopped update has encoded may have changed since.
            shutil.rmtree(aside_of(codes), ignore_errors=True)
            files.write_lines(begun, photos)
        changed = [photo.name for photo in photos if before.get(photo.name) not in (None, photo)]
        read += update_codes(encoder, source, codes, changed=changed)
        begun.replace(done)
    return read


def _index(folder):
    _say("indexing")
    shards = read_shards(folder / "codes")
    images = collection.of_shards(shards.shards, shards.job, shards.keep)
    write_collection(folder / "index", shards.codebooks, images, shards.encoder)
    return images.num_images


def _draw(encoder, source, folder):
    _say("drawing")
    index, images = load_index(folder / "index"), catalog.load_images(source)
    make_gallery(index, encoder, images, draw_queries(index, source), folder / _GALLERY)
    if not (folder / _REPORT).exists():
        run = folder / "run"
        before = workdir.read_settings(run).dataset
        moved = {"dataset": source} if _has_moved(before, source) else {}
        write_report([run], folder / _REPORT, untrained=False, **moved)


def _say(line):
    print(line, file=sys.stderr, flush=True)
