"""What kinds of refit gain: one trained run, figured without test data.

    python -m benchmarks.studies.refit --workdir=runs/fast --refits=opq:0,neighbors:0 \
        --output=runs/refit.jsonl

The labels of the training set, never those of the test set, score the codes: one image in ten
queries the others, which the layers, the rotation and the codebooks are fitted to. A line of OUTPUT
for each refit, KIND:SHARE as `--refit` and `--input_share` have them and :mirror behind it for
`--mirror_mean`, has mAP@1000 of the codes and of the unquantized embeddings, and P@1 of both.
"""

import dataclasses
import json
import pathlib

from absl import flags

from benchmarks import machine
from benchmarks.studies.short_budget import divide, score
from hqc_tf import commands
from hqc_tf.data import catalog
from hqc_tf.data.images import Images
from hqc_tf.model import HQC
from hqc_tf.training import refit
from hqc_tf.workdir import Folder, load, read_settings


def refitted(workdir: Folder, described: str, images: Images) -> HQC:
    """The model of a run's last weights, refitted to some images as KIND:SHARE[:mirror] says."""
    kind, share, *mirror = described.split(":")
    trained = load(workdir, "last", refitted=False)
    changed = {"refit": kind, "input_share": float(share), "mirror_mean": mirror == ["mirror"]}
    trained.settings = dataclasses.replace(trained.settings, **changed)
    refit.refit_model(trained, images)
    return trained


def main(_: list[str]) -> None:
    values = flags.FLAGS
    before = read_settings(values.workdir)
    data_dir = values.data_dir or before.data_dir
    images, apart = divide(catalog.load_split(before.dataset, "train", data_dir))
    for one in values.refits:
        trained = refitted(values.workdir, one, images)
        c = trained.settings
        found = score(trained, images, apart)
        names = "refitted", "embedding", "refitted_p1", "embedding_p1"
        line = {
            "refit": c.refit,
            "share": c.input_share,
            "mirror": c.mirror_mean,
            "dataset": c.dataset,
            "seed": c.seed,
            "bits": c.bits,
        }
        line |= {name: found[name] for name in names} | {"hardware": machine.hardware()}
        with pathlib.Path(values.output).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a training", required=True)
    flags.DEFINE_list("refits", ["opq:0", "neighbors:0"], "KIND:SHARE[:mirror] of each refit")
    flags.DEFINE_string("output", None, "file to which lines are added", required=True)
    flags.DEFINE_string("data_dir", "", "folder of the data, if it has moved since the training")
    commands.run(main)
