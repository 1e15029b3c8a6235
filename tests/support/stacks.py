"""One set's half of test_stacks.py: `stacks.py PHOTOS OWN OTHER OUTPUT` in a process of its own.

It trains, exports and indexes into OWN, says so, and waits for a line. Then it answers with what
the other set left in OTHER, and goes on with that one's half-done run, into OUTPUT.
"""

# ruff: noqa: I001
from hqc_tf import config, train
from hqc_tf.workdir import FLAGFILE, read_settings, load, save_weights, saved_step
from hqc_tf.data import catalog
from hqc_tf.training.state import RunState

import pathlib
import shutil
import sys

import numpy as np
from tests.support import spread
from tests.support.networks import TWO_CONVOLUTIONS
import tensorflow as tf

from benchmarks import kill_test
from export import index, saved_model
from export.encoder import encode_images, load_encoder

SETTINGS = {
    "backbone": TWO_CONVOLUTIONS,
    "image_size": 8,
    "backbone_width": 4,
    "num_books": 2,
    "num_words": 16,
    "word_dim": 3,
    "num_neighbors": 3,
    "batch_size": 8,
    "epochs": 2,
    "warmup_epochs": 1,
    "held_out": 0,
    "checkpoint_steps": 10,
    "top_k": 10,
    # One pass for both views and fewer terms are traced sooner.
    "joint_views": True,
    "instance_embedding_weight": 0.0,
    "consistency_weight": 0.0,
    "part_neighbor_weight": 0.0,
    "codeword_diversity_weight": 0.0,
}
NEAREST = 5


def write(photos, folder):
    """Leaves run/, half/ (as a kill after 10 steps), spread/, serving/, index/ and answers.npz."""
    settings = config.Config(dataset=f"folder:{photos}", **SETTINGS)
    images = catalog.load_images(settings.dataset)
    _train_and_copy_midway(settings, folder / "run", folder / "half")
    _spread(folder / "run", images, folder / "spread")
    version = saved_model.export_encoder(folder / "spread", folder / "serving", weights="last")
    encoder = load_encoder(version)
    codes = encode_images(encoder, images).codes
    index.write_index(folder / "index", encoder.codebooks, codes, images.ids, encoder.identity)
    np.savez(folder / "answers.npz", **answers(folder))


def read(folder, output):
    """Leaves answers.npz, restored.npz of the half-done run's state, and half/ trained on."""
    np.savez(output / "answers.npz", **answers(folder))
    shutil.copytree(folder / "half", output / "half")
    restore = RunState.restore

    def restore_and_tell(state):
        step = restore(state)
        # Written anew, so that what was really restored is compared.
        again = tf.train.Checkpoint(model=state.model, optimizer=state.model.optimizer)
        again.save(str(output / "restored/ckpt"))
        np.savez(output / "restored.npz", **kill_test.arrays(output / "restored"))
        return step

    RunState.restore = restore_and_tell
    train.train_and_evaluate(read_settings(output / "half"), output / "half")


def answers(folder):
    """What weights, SavedModel and index in a folder say of the images: dict of arrays."""
    images = catalog.load_images(read_settings(folder / "run").dataset)
    learned = load(folder / "run", "last").encode_images(images)
    served = encode_images(load_encoder(folder / "serving"), images)
    opened = index.load_index(folder / "index")
    ids, distances = opened.search(served.embeddings, NEAREST)
    return {
        "learned_embeddings": learned.embeddings,
        "learned_codes": learned.codes,
        "served_embeddings": served.embeddings,
        "served_codes": served.codes,
        "indexed_codes": opened.codes,
        "found_ids": np.array(ids),
        "found_distances": distances,
    }


def _train_and_copy_midway(settings, folder, copy):
    save = RunState.save

    def save_and_copy(state):
        save(state)
        if state.step == settings.checkpoint_steps:
            shutil.copytree(folder, copy)

    RunState.save = save_and_copy
    train.train_and_evaluate(settings, folder)
    RunState.save = save


def _spread(workdir, images, folder):
    """The run's weights, but for embeddings that are spread."""
    trained = load(workdir, "last")
    spread.spread(trained, images)
    save_weights(trained, folder, saved_step(workdir), "last")
    shutil.copy(workdir / FLAGFILE, folder)


def main(photos, own, other, output):
    write(photos, own)
    print("written", flush=True)
    if sys.stdin.readline():
        read(other, output)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
