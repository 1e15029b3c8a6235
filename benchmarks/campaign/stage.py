"""What is attacked: a few real photos, a training on them, its encoder, codes and an index."""

import pathlib
import shutil

import PIL.Image

from benchmarks.campaign.in_process import run
from benchmarks.campaign.row import must
from hqc_tf.data import catalog

# Photos that are indexed, and those that are added.
IMAGES, MORE = 48, 24
TRAINING = (
    "--image_size=8", "--backbone_width=2", "--num_books=2", "--num_words=16", "--batch_size=8",
    "--epochs=2", "--warmup_epochs=0", "--top_k=10", "--held_out=4", "--checkpoint_steps=3",
    "--joint_views", "--part_neighbor_weight=0", "--codeword_diversity_weight=0",
)  # fmt: skip


def write(folder: pathlib.Path, data_dir: str) -> None:
    """Makes photos/, more/, run/, serving/, codes/, more_codes/ and index/ in `folder`."""
    images = catalog.load_images(f"fashion_mnist/test[:{IMAGES + MORE}]", data_dir)
    for row, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        name = "photos" if row < IMAGES else "more"
        path = folder / name / f"class{label % 2}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    work("hqc_tf.train", *train_flags(folder), f"--workdir={folder}/run")
    work("export.saved_model", f"--workdir={folder}/run", f"--output={folder}/serving")
    for name, codes in (("photos", "codes"), ("more", "more_codes")):
        work("export.encode", *encode_flags(folder, name), f"--output={folder}/{codes}")
    work("export.index", f"--codes={folder}/codes", f"--output={folder}/index")


def train_flags(folder: pathlib.Path) -> list[str]:
    """Of the training in run/."""
    return [f"--dataset=folder:{folder}/photos", *TRAINING]


def encode_flags(folder: pathlib.Path, name: str = "photos") -> list[str]:
    """Of an encoding."""
    return [f"--saved_model={folder}/serving", f"--input=folder:{folder}/{name}"]


def work(module: str, *arguments: str) -> str:
    """What a command prints that must succeed."""
    done = run(module, *arguments)
    must(done.status == 0, f"{module} ended with {done.status}: {done.stderr[-300:]}")
    return done.stdout


def lay(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes `folder` a copy of `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, symlinks=True)
