"""How well copies are told from look-alikes: `python -m benchmarks.duplicates --images=...`

Takes photos and makes of each, in a folder of its own, copies (saved again as PNG and as JPEG of
quality 60, resized to half, cut by up to 4 % of each side) and look-alikes (its mirror image, a
window shifted by a quarter, one with a part of it moved, a brighter one). Then the folder is
indexed and grouped as by `export.duplicates`. Recall is the share of copies that are in the group
of their original; precision the share of pairs of a group that are copies of one photo.
"""

import collections
import itertools
import pathlib
import tempfile
import time

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageStat
from absl import flags

from benchmarks import machine
from export import duplicates
from export.encoder import encode_images, load_encoder
from export.index import load_index, write_index
from hqc_tf import commands
from hqc_tf.data import catalog

# Of the longer side of an original, in pixels.
SIDE = 600


def cut(picture, rng):
    """Without up to 4 % at each side."""
    width, height = picture.size
    left, top, right, bottom = 0.04 * rng.random(4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return picture.crop([round(x) for x in box])


def moved(picture):
    """With a fifth of each side of its middle shown too in the corner that it changes most."""
    width, height = picture.size
    part = picture.crop((width * 2 // 5, height * 2 // 5, width * 3 // 5, height * 3 // 5))

    def change(place):
        covered = picture.crop((*place, place[0] + part.width, place[1] + part.height))
        return sum(PIL.ImageStat.Stat(PIL.ImageChops.difference(covered, part)).sum)

    changed = picture.copy()
    corners = itertools.product((width // 10, width * 7 // 10), (height // 10, height * 7 // 10))
    changed.paste(part, max(corners, key=change))
    return changed


COPIES = {
    "png": lambda p, _: (p, "png", {}),
    "jpeg 60": lambda p, _: (p, "jpg", {"quality": 60}),
    "half": lambda p, _: (p.resize((p.width // 2, p.height // 2)), "jpg", {"quality": 90}),
    "cut": lambda p, rng: (cut(p, rng), "jpg", {"quality": 90}),
}
LOOK_ALIKES = {
    "mirrored": lambda p: p.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
    "moved part": moved,
    "brighter": lambda p: p.point(lambda level: min(255, level * 1.2)),
}


def make_folder(paths, folder):
    """Writes originals, copies and look-alikes, and returns {name: (photo, kind)}."""
    made, rng = {}, np.random.default_rng(0)

    def save(picture, number, kind, suffix="jpg", **options):
        name = f"{kind.replace(' ', '_')}/{number:05}.{suffix}"
        (folder / name).parent.mkdir(exist_ok=True)
        picture.save(folder / name, **options)
        made[name] = (number, kind)

    for number, path in enumerate(paths):
        with PIL.Image.open(path) as opened:
            scene = opened.convert("RGB")
        scene.thumbnail((SIDE, SIDE))
        # The right four fifths, so that another window is left.
        shift = scene.width // 5
        original = scene.crop((shift, 0, scene.width, scene.height))
        save(original, number, "original", quality=92)
        save(scene.crop((0, 0, scene.width - shift, scene.height)), number, "shifted", quality=92)
        for kind, make in COPIES.items():
            picture, suffix, options = make(original, rng)
            save(picture, number, kind, suffix, **options)
        for kind, make in LOOK_ALIKES.items():
            save(make(original), number, kind, quality=92)
    return made


def measure(made, groups):
    """How often each kind is in the group of its original, and precision."""
    group_of = {name: number for number, group in enumerate(groups) for name in group.ids}
    original = {photo: name for name, (photo, kind) in made.items() if kind == "original"}
    found = collections.defaultdict(list)
    for name, (photo, kind) in made.items():
        own = group_of.get(original[photo], -1)
        found[kind].append(own >= 0 and group_of.get(name) == own)
    right = [
        made[one][0] == made[other][0] and {made[one][1], made[other][1]} <= {"original", *COPIES}
        for group in groups
        for one, other in itertools.combinations(group.ids, 2)
    ]
    return {kind: float(np.mean(hits)) for kind, hits in found.items()}, float(np.mean(right))


def main(_):
    values = flags.FLAGS
    source = catalog.parse(values.images)
    paths = [source.root / name for name in source.files()][: values.most]
    encoder = load_encoder(values.saved_model)
    print(machine.describe(machine.hardware()), f"{len(paths)} photos", sep="\n")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "images")
        folder.mkdir()
        made = make_folder(paths, folder)
        images = catalog.load_images(f"folder:{folder}")
        codes = encode_images(encoder, images).codes
        write_index(f"{name}/index", encoder.codebooks, codes, images.ids, encoder.identity)
        index = load_index(f"{name}/index")
        usual = duplicates.usual_radius(index)
        print(f"{index.num_images} images, {len(index.distinct_codes)} codes, usual {usual:.3g}")
        print("| most distance | seconds | groups | precision | " + " | ".join(COPIES), end=" | ")
        print(" | ".join(["shifted", *LOOK_ALIKES]), "|")
        print("|---" * (5 + len(COPIES) + len(LOOK_ALIKES)) + "|", flush=True)
        for radius in (0, usual):
            begun = time.perf_counter()
            groups = [*duplicates.find_by_pixels(index, radius, str(folder))]
            taken = time.perf_counter() - begun
            recall, precision = measure(made, groups)
            kinds = [f"{recall[kind]:.3f}" for kind in (*COPIES, "shifted", *LOOK_ALIKES)]
            row = [f"{radius:.3g}", f"{taken:.0f}", len(groups), f"{precision:.3f}", *kinds]
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "folder:PATH of photos", required=True)
    flags.DEFINE_string("saved_model", None, "what export.saved_model wrote", required=True)
    flags.DEFINE_integer("most", 500, "photos that are taken", lower_bound=1)
    commands.run(main)
