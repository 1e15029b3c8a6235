"""Writes the groups of images that an index has twice, the largest first; nothing is deleted.

`python -m export.duplicates --index=index/ --images=folder:photos/ --output=groups.jsonl`

A line of JSON for each group has its "ids", and with --images, where pixels decide, the "largest"
and the "sides" and "bytes" of each.
"""

import pathlib

from absl import flags

from export import duplicates
from export.index import load_index
from hqc_tf import commands, files
from hqc_tf.data import catalog
from hqc_tf.errors import UserError, counted


def _root(images):
    """The folder that --images names; empty where it names none."""
    source = images and catalog.parse(images)
    if source and (source.kind != "folder" or not source.root.is_dir()):
        raise UserError(f"--images={images}: not a folder of images; give folder:PATH")
    return source and str(source.root)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    root, output = _root(values.images), pathlib.Path(values.output)
    files.check_parent(output, "--output=")
    index = load_index(values.index)
    radius = values.max_distance
    if radius is None:
        radius = duplicates.usual_radius(index) if root else 0.0
    if root:
        groups = duplicates.find_by_pixels(index, radius, root)
    else:
        groups = duplicates.find_by_code(index, radius)
    sizes = []

    def write(file):
        for group in groups:
            sizes.append(len(group.ids))
            file.write(files.to_text([group]).encode())

    files.write_atomically(output, write)
    groups, images = counted(len(sizes), "group"), counted(index.num_images, "image")
    print(f"{output}: {groups} of {sum(sizes)} of {images}")


if __name__ == "__main__":
    flags.DEFINE_string("index", None, "folder that export.index wrote", required=True)
    flags.DEFINE_string(
        "images", "", "folder:PATH of the files, whose pixels then decide; empty: codes alone do"
    )
    flags.DEFINE_float(
        "max_distance",
        None,
        "most squared distance of the codes of two copies; default: 0, equal codes, or with "
        "--images what neighboring words differ by",
        0,
    )
    flags.DEFINE_string("output", None, "file for the groups, a line of JSON each", required=True)
    commands.run(main)
