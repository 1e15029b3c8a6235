"""A matrix of features: trained on, resumed, exported, served, indexed and searched."""

import json

import numpy as np
import pytest

from export.encoder import encode_images, load_encoder
from export.index import load_index
from hqc_tf.data import catalog, features
from hqc_tf.model import build_model
from hqc_tf.train import train_and_evaluate
from hqc_tf.workdir import load
from tests.support import commands, serving

pytestmark = pytest.mark.usefixtures("same_random_numbers")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """60 rows about 6 centers, in a file."""
    random = np.random.default_rng(1)
    rows = random.normal(size=[6, 12])[np.arange(60) % 6] + 0.2 * random.normal(size=[60, 12])
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, rows.astype(np.float32))
    return path


@pytest.fixture(scope="module")
def run(matrix, small_config, tmp_path_factory):
    """A run trained on them, through its end."""
    folder = tmp_path_factory.mktemp("run")
    settings = small_config(dataset=f"features:{matrix}", held_out=6, checkpoint_steps=3)
    train_and_evaluate(settings, folder)
    return settings, folder


@pytest.fixture(scope="module")
def encoder_path(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("serving")
    done = commands.run("export.saved_model", f"--workdir={run[1]}", f"--output={output}")
    assert done.status == 0, done.stderr
    return output / "1"


def test_the_run_has_its_width_and_the_same_command_does_nothing(run):
    settings, folder = run
    assert "--feature_width=12\n" in (folder / "flags.txt").read_text()
    before = (folder / "metrics.jsonl").read_text()
    again = train_and_evaluate(settings, folder)
    assert [line.weights for line in again] == ["last", "best"]
    assert (folder / "metrics.jsonl").read_text() == before


def test_features_are_normalized_inside_the_encoder(run, matrix):
    trained, rows = load(run[1]), np.load(matrix)
    norm = trained.encoder.get_layer("feature_norm")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (unit - norm.mean.numpy()) / norm.deviation.numpy()
    np.testing.assert_allclose(norm(rows), expected, atol=1e-5)
    assert norm.mean.numpy().any() and norm.deviation.numpy() != 1
    scaled, _ = trained.encode(7 * rows)
    np.testing.assert_allclose(scaled, trained.encode(rows)[0], rtol=1e-4, atol=1e-6)


def test_the_served_encoder_gives_the_model_s_codes(run, encoder_path, matrix, tmp_path):
    rows = np.load(matrix)
    signatures = serving.read_signatures(encoder_path)
    assert signatures["encode_embedding"][0].keys() == {"features"}
    assert "encode_bytes" not in signatures
    embedding, codes = load(run[1]).encode(rows)
    encoder = load_encoder(encoder_path)
    answer = encoder.signatures["encode_embedding"](features=rows)
    np.testing.assert_allclose(answer["embedding"], embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answer["codes"], codes)
    images = catalog.load_images(f"features:{matrix}")
    np.testing.assert_array_equal(encode_images(encoder, images).codes, codes)


def test_an_encoder_of_images_gives_its_backbone_s_features_codes_too(encoder, workdir, photos):
    import tensorflow as tf

    trained = load(workdir)
    images = catalog.load_images(f"folder:{photos}").take(range(5))
    backbone = tf.keras.Model(trained.encoder.input, trained.encoder.get_layer("projection").input)
    views = next(iter(trained_views(trained, images)))
    found = encoder.signatures["encode_embedding"](features=backbone(views))
    expected = encode_images(encoder, images)
    np.testing.assert_allclose(found["embedding"], expected.embeddings, rtol=1e-4, atol=1e-5)


def trained_views(trained, images):
    from hqc_tf.data.batches import plain_batches

    return plain_batches(images, *trained.settings.plain_sizes, len(images))


def test_index_and_search_take_features(encoder_path, matrix, tmp_path):
    def run(command, *arguments, status=0):
        done = commands.run(command, *arguments)
        assert done.status == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    output = f"--output={tmp_path}/index"
    made = f"--saved_model={encoder_path}", f"--dataset=features:{matrix}"
    assert "60 images" in run("export.index", *made, output)
    width = load_index(tmp_path / "index").manifest["encoder"]["feature_width"]
    assert width == 12
    asked = f"--index={tmp_path}/index", "--k=3"
    by_rows = run("export.search", *asked, f"--embeddings={matrix}").splitlines()
    by_data = run("export.search", *asked, f"--dataset=features:{matrix}").splitlines()
    assert [json.loads(line)["ids"] for line in by_rows] == [
        json.loads(line)["ids"] for line in by_data
    ]
    assert json.loads(by_rows[0])["ids"][0].startswith(f"{matrix}:")
    np.save(tmp_path / "wide.npy", np.ones([2, 13], np.float32))
    said = run("export.search", *asked, f"--embeddings={tmp_path}/wide.npy", status=2)
    assert "holds float32 (2, 13), but index" in said and "[Q, 6] or [Q, 12]" in said
    said = run("export.search", *asked, f"--dataset=features:{tmp_path}/wide.npy", status=2)
    assert "features of 13 numbers, but" in said and "takes 12; give those" in said
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"x")
    assert "encodes features of 12 numbers" in run("export.search", *asked, picture, status=2)


def test_a_report_of_features_names_what_it_cannot_show(run, matrix, tmp_path):
    done = commands.run("hqc_tf.report", f"--workdir={run[1]}", f"--output={tmp_path}/r.html")
    assert done.status == 0, done.stderr
    assert f"{matrix}:" in (tmp_path / "r.html").read_text()
    done = commands.run("export.gallery", "--index=none", f"--dataset=features:{matrix}")
    assert done.status == 2 and "has no pictures; take export.search" in done.stderr


def test_a_matrix_that_changed_is_another_input(encoder_path, matrix, tmp_path):
    rows = np.load(matrix)
    np.save(tmp_path / "x.npy", rows)
    made = f"--saved_model={encoder_path}", f"--input=features:{tmp_path}/x.npy"
    arguments = *made, f"--output={tmp_path}/codes", "--num_shards=2"
    assert commands.run("export.encode", *arguments).status == 0
    np.save(tmp_path / "x.npy", 2 * rows)
    done = commands.run("export.encode", *arguments)
    assert done.status == 2 and "belongs to another job: what is encoded was" in done.stderr


def test_statistics_come_from_the_training_rows_alone(run, matrix):
    from hqc_tf.data.images import hold_out

    settings, folder = run
    trained_on, _ = hold_out(catalog.load_images(f"features:{matrix}"), 6)
    mean, deviation = features.statistics(trained_on)
    norm = load(folder).encoder.get_layer("feature_norm")
    np.testing.assert_allclose(norm.mean, mean)
    assert norm.deviation.numpy() == pytest.approx(deviation)
    fresh = build_model(load(folder).settings)
    assert not fresh.encoder.get_layer("feature_norm").mean.numpy().any()
