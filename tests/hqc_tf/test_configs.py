"""The flagfiles: each parses, says what its name says, builds its model and repeats."""

import dataclasses
import functools
import pathlib
import re
import shlex

import pytest

from benchmarks.ablation import resolve
from hqc_tf import config, model
from hqc_tf.workdir import FLAGFILE, read_settings
from tests.support import ROOT

FLAGFILES = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("configs/**/*.flags"))
BENCHMARKS = [name for name in FLAGFILES if re.search(r"_\d+bit\.flags$", name)]
ABLATIONS = [name for name in FLAGFILES if "/ablations/" in name]
BASE = "configs/cifar10_32bit.flags"
TERMS = {
    "instance_quantized",
    "instance_embedding",
    "consistency",
    "part_neighbor",
    "codeword_diversity",
}
# What a model's shape hangs on, beside --num_books; pretrained weights would be a download.
NETWORK = (
    "backbone",
    "backbone_width",
    "image_size",
    "num_words",
    "word_dim",
    "book_classification_weight",
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Where the commands are run, and where a flagfile finds its base."""
    monkeypatch.chdir(ROOT)


def settings_of(name):
    return resolve([f"--flagfile={name}"])


def own_lines(name):
    lines = pathlib.Path(name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def differences(settings, base):
    pairs = dataclasses.asdict(settings), dataclasses.asdict(base)
    return {name: value for name, value in pairs[0].items() if value != pairs[1][name]}


def test_all_benchmarks_are_there():
    assert {pathlib.Path(name).stem for name in BENCHMARKS} >= {
        f"{dataset}_{bits}bit"
        for dataset in ("cifar10", "flickr25k", "nuswide")
        for bits in (16, 32, 64)
    }


@pytest.mark.parametrize("name", FLAGFILES)
def test_its_header_names_the_command_that_takes_it(name):
    header = [line for line in pathlib.Path(name).read_text().splitlines() if line[:1] == "#"]
    commands = [shlex.split(line[1:]) for line in header if "python -m " in line]
    assert [c[:3] for c in commands] == [["python", "-m", "hqc_tf.train"]]
    arguments = commands[0][3:]
    assert arguments[0] == f"--flagfile={name}"
    assert arguments[1].startswith("--workdir=")
    # The rest, such as --data_dir=DIR, are flags too.
    resolve([arguments[0], *arguments[2:]])


@pytest.mark.parametrize("name", FLAGFILES)
def test_it_repeats_through_what_a_run_leaves(name, tmp_path):
    settings = settings_of(name)
    (tmp_path / FLAGFILE).write_text(config.to_flagfile(settings))
    assert read_settings(tmp_path) == settings


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_the_data_and_the_bits_of_its_name(name):
    settings = settings_of(name)
    assert pathlib.Path(name).stem == f"{settings.dataset}_{settings.bits}bit"
    assert settings.num_words == 16
    assert set(settings.term_weights()) == TERMS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_lengths_differ_from_32_bits_in_the_books_alone(name):
    base = re.sub(r"_\d+bit", "_32bit", name)
    assert set(differences(settings_of(name), settings_of(base))) <= {"num_books"}


def test_cifar10_is_trained_as_the_authors_train_it():
    assert settings_of(BASE) == config.Config(dataset="cifar10")


@pytest.mark.parametrize("dataset", ["flickr25k", "nuswide"])
def test_photos_are_trained_on_as_the_authors_do(dataset):
    settings = settings_of(f"configs/{dataset}_32bit.flags")
    assert differences(settings, config.Config()) == {
        "dataset": dataset,
        "image_size": 224,
        "resize_size": 256,
        "backbone": "resnet50",
        "epochs": 500,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "final_fraction": 0.01,
        "top_k": 5000,
    }


@pytest.mark.parametrize("dataset", ["flickr25k", "nuswide"])
def test_a_pretrained_backbone_is_frozen_and_all_else_stays(dataset):
    settings = settings_of(f"configs/{dataset}_pretrained.flags")
    assert differences(settings, settings_of(f"configs/{dataset}_32bit.flags")) == {
        "image_size": 32,
        "resize_size": 32,
        "backbone": "keras:VGG16",
        "backbone_weights": "imagenet",
        "train_backbone": "none",
    }


def test_spq_is_its_loss_alone():
    settings = settings_of("configs/spq.flags")
    assert settings.term_weights() == {"cross_quantized": 1.0}
    assert settings.cross_quantized_temperature == 0.5
    changed = differences(settings, settings_of(BASE))
    assert all(name.endswith("_weight") for name in changed)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_the_base_and_lines_that_act(name):
    first, *lines = own_lines(name)
    assert first == f"--flagfile={BASE}"
    written = {line.removeprefix("--").split("=")[0] for line in lines}
    assert 1 <= len(lines) <= 2
    assert set(differences(settings_of(name), settings_of(BASE))) == written


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("no_part", {"part_neighbor"}),
        ("no_consistency", {"consistency"}),
        ("no_diversity", {"codeword_diversity"}),
        ("authors_defaults", {"instance_quantized", "instance_embedding"}),
        ("sharp_diversity", set()),
    ],
)
def test_an_ablation_leaves_out_the_terms_of_its_name(name, left_out):
    terms = settings_of(f"configs/ablations/{name}.flags").term_weights()
    assert set(terms) == TERMS - left_out


@functools.cache
def build(settings):
    return model.build_model(settings)


@pytest.mark.parametrize("name", FLAGFILES)
def test_it_builds_its_model(name):
    settings = settings_of(name)
    # Files that differ in other things share a model, and ResNet-50, slow to build, has one length.
    books = 8 if settings.backbone == "resnet50" else settings.num_books
    network = {field: getattr(settings, field) for field in NETWORK} | {"num_books": books}
    built = build(config.Config(**network))
    side = settings.image_size
    assert built.encoder.input_shape == (None, side, side, 3)
    assert built.encoder.output_shape == (None, books * settings.word_dim)
    assert built.quantizer.codebooks.shape == (books, settings.num_words, settings.word_dim)
