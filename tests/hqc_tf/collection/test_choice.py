import pytest

from hqc_tf.baselines import opq
from hqc_tf.collection import choice
from hqc_tf.errors import UserError


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "neighbors", "held_out"),
    [
        (8, 8, 400, 4, 0),
        (20, 8, 400, 4, 0),
        (300, 32, 400, 16, 1000),
        (909, 64, 132, 20, 1000),
        (50_000, 256, 2, 20, 1000),
        (20_000_000, 256, 2, 20, 1000),
    ],
)
def test_settings_fit_any_number_of_photos(count, batch, epochs, neighbors, held_out):
    made = choice.choose("folder:p", count, {}, "f")
    found = made.training
    assert made.embedding is None and found.dataset == "folder:p"
    assert (found.batch_size, found.epochs, found.num_neighbors) == (batch, epochs, neighbors)
    assert (found.held_out, found.batch_size <= count) == (held_out, True)
    assert "a color histogram may find more" in made.reasons[0]
    assert found.refit == ("opq" if opq.is_installed() and count >= 200 else "none")


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_too_few_photos_are_refused(count):
    with pytest.raises(UserError, match=f"folder:p: {count} images?, too few to train on; give 8"):
        choice.choose("folder:p", count, {}, "f")


def test_settings_that_are_given_go_before():
    made = choice.choose("folder:p", 909, {"epochs": 1, "num_books": 16, "batch_size": 9}, "f")
    found = made.training
    assert (found.epochs, found.warmup_epochs, found.bits, found.num_neighbors) == (1, 0, 64, 4)


def test_a_pretrained_network_is_frozen_and_the_training_is_on_its_vectors():
    given = {"backbone": "saved_model:net", "backbone_pixels": "-1..1", "num_books": 4, "seed": 3}
    made = choice.choose("folder:p", 909, given, "album/features")
    assert (made.embedding.backbone, made.embedding.backbone_pixels) == ("saved_model:net", "-1..1")
    assert (made.embedding.train_backbone, made.embedding.image_size) == ("none", 224)
    assert made.training.dataset == "features:album/features" and made.training.epochs == 400
    assert (made.training.backbone, made.training.bits) == ("resnet18_cifar", 16)
    assert made.embedding.seed == made.training.seed == 3
    assert made.reasons[0].startswith("network: saved_model:net, pretrained and frozen, at 224")


@pytest.mark.parametrize(
    ("count", "given", "expected"),
    [
        (200, {}, ("neighbors", 0.5)),
        (199, {}, ("none", 0)),
        (300, {"num_words": 256}, ("none", 0)),
        (512, {"num_words": 256}, ("neighbors", 0.5)),
        (200, {"refit": "none"}, ("none", 0)),
        (200, {"refit": "opq", "input_share": 0.1}, ("opq", 0.1)),
        (200, {"input_share": 0.3}, ("neighbors", 0.3)),
    ],
)
def test_vectors_are_refitted_where_there_are_enough(count, given, expected, monkeypatch):
    given = {"backbone": "saved_model:net"} | given
    if opq.is_installed():
        found = choice.choose("folder:p", count, given, "f").training
        assert (found.refit, found.input_share) == expected
    monkeypatch.setattr(opq, "is_installed", lambda: False)
    if "input_share" not in given:
        assert choice.choose("folder:p", count, given, "f").training.refit == "none"


def test_weights_that_keras_has_downloaded_are_found(tmp_path):
    assert choice.find_weights(tmp_path) == ""
    for file in ("mobilenet_1_0_224_tf_no_top.h5", "efficientnetb0_notop.h5"):
        (tmp_path / file).touch()
    found = choice.find_weights(tmp_path)
    assert found == str(tmp_path / "efficientnetb0_notop.h5")
    made = choice.choose("folder:p", 100, {}, "f", found)
    assert made.embedding.backbone == "keras:EfficientNetB0"
    assert made.embedding.backbone_weights == found
    other = choice.choose("folder:p", 100, {"backbone": "resnet18_cifar"}, "f", found)
    assert other.embedding is None


def test_a_pretrained_network_that_should_train_is_refused():
    given = {"backbone": "keras:MobileNetV2", "backbone_weights": "imagenet"}
    with pytest.raises(UserError, match="--train_backbone=all: a collection embeds by a pre"):
        choice.choose("folder:p", 909, given | {"train_backbone": "all"}, "f")
