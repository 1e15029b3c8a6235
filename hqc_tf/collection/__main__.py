"""Makes a searchable collection of a folder of photos, in one command.

`python -m hqc_tf.collection folder:photos/ --output=album/` chooses by the number of photos what
works, and says so; trains, exports, encodes, indexes, and draws a gallery and a report. The same
command again resumes, or takes in photos that are new, changed or gone, without another training.
Settings that are given go before those that it would choose. Most is gained by a pretrained network
(--backbone, --backbone_weights).
"""

import shlex

from absl import flags

from hqc_tf import commands, config, evaluate
from hqc_tf.collection import make_collection
from hqc_tf.errors import UserError, counted


def main(sources: list[str]) -> None:
    values = flags.FLAGS
    if values["dataset"].present:
        source = values.dataset
        raise UserError(f"--dataset={source}: write {source} alone, without the flag's name")
    if len(sources) != 1:
        raise UserError("name one folder:PATH or pattern of photos after the flags")
    names = [name for name in config.themes() if values[name].present]
    given = {name: values[name].value for name in names}
    made = make_collection(sources[0], values.output, **given)
    evaluate.show(made.results)
    photos = counted(made.num_images, "photo")
    print(f"{made.folder}: {photos} to search, {made.num_read} of them read now")
    _show_commands(sources[0], made.folder)


def _show_commands(source, folder):
    """Prints the commands that come next, for a shell."""
    source, album, index = map(shlex.quote, (source, str(folder), str(folder / "index")))
    print(f"search   python -m export.search --index={index} PHOTO.jpg")
    print(f"look     python -m export.browse --index={index} --images={source}")
    print(f"update   python -m hqc_tf.collection {source} --output={album}")


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("output", None, "folder of the collection", required=True)
    flags.adopt_module_key_flags(config)
    commands.run(main, takes_arguments=True)
