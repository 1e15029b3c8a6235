"""The commands themselves, one after the other, on real images: a killed training, then its use."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from hqc_tf.data import catalog
from tests.support import ROOT, commands
from tests.support.networks import TWO_CONVOLUTIONS

pytestmark = pytest.mark.long
IMAGES = 120
TRAIN = [
    f"--backbone={TWO_CONVOLUTIONS}", "--backbone_width=2", "--image_size=16", "--batch_size=16",
    "--epochs=2", "--warmup_epochs=1", "--top_k=100", "--checkpoint_steps=3",
    # One pass for both views and fewer terms are traced sooner.
    "--joint_views", "--instance_embedding_weight=0", "--consistency_weight=0",
    "--part_neighbor_weight=0", "--codeword_diversity_weight=0",
]  # fmt: skip
# `python -m hqc_tf.train`, which then knows TWO_CONVOLUTIONS.
START = (
    "import runpy; from tests.support import networks; "
    "runpy.run_module('hqc_tf.train', run_name='__main__', alter_sys=True)"
)


def run(module, *arguments, status=0):
    """Runs a command and returns what it printed; fails with that when its status is another."""
    done = commands.run(module, *arguments)
    assert done.status == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if not (ROOT / "data/tfds/fashion_mnist").is_dir():
        pytest.skip("Fashion-MNIST is not prepared in data/tfds: `make data` does it")
    images = catalog.load_images(f"fashion_mnist/test[:{IMAGES}]", str(ROOT / "data/tfds"))
    folder = tmp_path_factory.mktemp("walk")
    for row, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / "photos" / f"class{label}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def killed_and_resumed(folder):
    """A training killed after its first saved state, then started again; what the second said."""
    command = [f"--dataset=folder:{folder}/photos", f"--workdir={folder}/run", *TRAIN]
    first = subprocess.Popen(
        [sys.executable, "-c", START, *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not (folder / "run/checkpoints/state/checkpoint").exists():
        assert first.poll() is None, "training ended before it had saved a state"
        assert time.monotonic() < deadline, "no state saved in 180 s"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(
        [sys.executable, "-c", START, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return command, done


@pytest.fixture(scope="module")
def served(folder, killed_and_resumed):
    run("export.saved_model", f"--workdir={folder}/run", f"--output={folder}/serving")
    return folder / "serving"


@pytest.fixture(scope="module")
def index(folder, served):
    run(
        "export.index",
        f"--saved_model={served}",
        f"--dataset=folder:{folder}/photos",
        f"--output={folder}/index",
    )
    return folder / "index"


def test_a_killed_training_goes_on_and_finishes(folder, killed_and_resumed):
    _, done = killed_and_resumed
    steps = int(re.search(r"resuming after step (\d+) of 12", done.stderr)[1])
    assert 0 < steps < 12
    assert "mAP@100" in done.stdout
    results = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    assert [(r["weights"], r["distance"]) for r in results] == [("last", "l2"), ("best", "l2")]
    assert results[0]["step"] == 12 >= results[1]["step"]
    assert results[0]["protocol"] == "folder, 1 in 10 is a query"
    assert (folder / "run/flags.txt").exists() and any((folder / "run/tensorboard").iterdir())


def test_a_finished_training_is_not_repeated(killed_and_resumed):
    command, _ = killed_and_resumed
    assert "Epoch" not in run("hqc_tf.train", *command)


def test_a_workdir_of_other_flags_is_refused(killed_and_resumed):
    command, _ = killed_and_resumed
    message = run("hqc_tf.train", *command, "--num_books=4", status=2)
    assert re.search(r"made with --num_books=8, not 4; take another --workdir", message)
    assert message.count("\n") == 1


def test_evaluate_repeats_the_result_of_training(folder, killed_and_resumed):
    printed = run("hqc_tf.evaluate", f"--workdir={folder}/run", "--untrained")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    trained = [r["mean_average_precision"] for r in lines if r["weights"] == "last"]
    assert len(set(trained)) == 1
    *results, worse = printed.splitlines()
    assert len(results) == 3 and "untrained, step 0" in printed
    # 12 steps are not enough, and the command says so.
    assert worse.startswith("worse than no training: these codes have mAP@100 0.")


def test_search_answers_in_json_lines(folder, index):
    queries = sorted((folder / "photos").rglob("*.png"))[::50]
    answers = [
        json.loads(line)
        for line in run("export.search", f"--index={index}", "--k=10", *queries).splitlines()
    ]
    assert [answer["query"] for answer in answers] == [str(query) for query in queries]
    for answer in answers:
        assert len(answer["ids"]) == len(answer["distances"]) == 10
        assert answer["distances"] == sorted(answer["distances"])
        assert all((folder / "photos" / name).exists() for name in answer["ids"])


def test_search_finds_what_exact_distances_find(folder, index, served):
    from export.encoder import encode_images, load_encoder
    from export.index import load_index
    from hqc_tf.retrieval import asymmetric_distances

    images = catalog.load_images(f"folder:{folder}/photos")
    loaded, encoder = load_index(index), load_encoder(served)
    embeddings, codes = encode_images(encoder, images)
    np.testing.assert_array_equal(loaded.codes, codes)
    exact = asymmetric_distances(embeddings, codes, encoder.codebooks, "squared").numpy()
    found = loaded.rows(embeddings, 10)
    np.testing.assert_allclose(found.distances, np.sort(exact, axis=1)[:, :10], rtol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(exact, found.rows, axis=1), found.distances, rtol=1e-5
    )


def test_gallery_draws_a_picture(folder, index):
    run(
        "export.gallery",
        f"--index={index}",
        f"--dataset=folder:{folder}/photos",
        f"--output={folder}/neighbors.png",
        "--queries=3",
    )
    with PIL.Image.open(folder / "neighbors.png") as picture:
        assert picture.width > picture.height > 100


def test_an_index_of_another_encoder_is_refused(folder, index, served):
    shutil.copytree(served, folder / "other")
    manifest = folder / "other/1/manifest.json"
    manifest.write_text(manifest.read_text().replace('"fingerprint": "', '"fingerprint": "f'))
    query = next((folder / "photos").rglob("*.png"))
    message = run(
        "export.search", f"--index={index}", f"--saved_model={folder}/other", query, status=2
    )
    assert re.search(r"belongs to encoder .*, not f.*: rebuild it with", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=imagenet"], "imagenet: TFDS has no such data set; take another"),
        (["--dataset=cifar10", "--data_dir={folder}"], "cifar10: not prepared in .*prepare"),
        (["--dataset=folder:{folder}/none"], "no such folder; name one that holds images"),
        (["--dataset=folder:{folder}/empty"], "no image in it or below; put .jpg"),
        (["--num_words=12"], "--num_words=12: .*take a power of two from 2 to 256"),
        (["--epochs=many"], "--epochs=many"),
    ],
)
def test_bad_input_ends_in_one_line_before_any_work(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    done = commands.run("hqc_tf.train", *arguments, f"--workdir={tmp_path}/run")
    assert done.status == 2 and done.stdout == ""
    assert re.search(message, done.stderr) and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
