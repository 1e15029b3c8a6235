"""Makes a data set in TFDS form, once: `python -m hqc_tf.prepare --dataset=fashion_mnist`.

Fashion-MNIST comes from a Debian package, FLICKR25K and NUS-WIDE from the lists and photos in
`--manual_dir`; everything else is TFDS's own download.
"""

import json

from absl import flags

from hqc_tf import commands
from hqc_tf.errors import UserError
from hqc_tf.prepare import DEBIAN_DIR, DEBIAN_PACKAGE, prepare


def define_flags() -> None:
    """Defines this command's flags; called late, as `hqc_tf.config` has flags of the same names."""
    flags.DEFINE_string("dataset", "fashion_mnist", "The data set's name in TFDS.")
    flags.DEFINE_string("data_dir", "data/tfds", "Folder of the prepared data sets.")
    text = f"Folder of the files of Debian's package {DEBIAN_PACKAGE}; put there if missing."
    flags.DEFINE_string("debian_dir", DEBIAN_DIR, text)
    text = "Folder with the lists and photos of flickr25k or nuswide."
    flags.DEFINE_string("manual_dir", "", text)


def main(rest: list[str]) -> None:
    """Prepares the data set that the flags name, and prints its folder and splits."""
    values = flags.FLAGS
    if rest:
        raise UserError(f"{' '.join(rest)}: no flag; this command takes only flags")
    try:
        folder, new = prepare(values.dataset, values.data_dir, values.debian_dir, values.manual_dir)
    except OSError as error:
        raise UserError(f"{error}; make {values.data_dir} writable, or try again") from error
    print(f"{values.dataset} {'prepared' if new else 'already prepared'} in {folder}")
    if new:
        splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
        print("splits:", ", ".join(split["name"] for split in splits))


if __name__ == "__main__":
    define_flags()
    commands.run(main)
