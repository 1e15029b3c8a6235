"""What works for a number of photos: the network, and the settings of a training.

A pretrained network finds more in photos than one trained on a few thousand of them, so it is taken
where there is one. The other settings are those of short trainings (docs/train.md).
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from hqc_tf import config
from hqc_tf.baselines import opq
from hqc_tf.errors import UserError, counted

# Fewer give no two views of different images to compare in a batch.
LEAST = 8
# Random views of each image that a frozen network embeds.
VIEWS = 4
# Files that Keras keeps of weights, by network, the first preferred.
CACHED = {
    "EfficientNetB0": "efficientnetb0_notop.h5",
    "ConvNeXtTiny": "convnext_tiny_notop.h5",
    "ResNet50": "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "MobileNet": "mobilenet_1_0_224_tf_no_top.h5",
}
_CACHE = pathlib.Path("~/.keras/models")
# Images seen in a training, and its epochs at most: minutes on two cores.
_SEEN_FROM_SCRATCH, _SEEN_OF_FEATURES = 120_000, 1_000_000
_MOST_EPOCHS = 400
_LEAST_BATCH, _MOST_BATCH = 8, 256
# A network sees an image at this size, in pixels, if no other is given.
_SIDE = 224
# Held out to choose weights by, and refitted to, of so many images.
_LEAST_TO_HOLD_OUT = 200
_RECIPE = {
    "projection_norm": True,
    "embedding_length": 4.0,
    "decorrelation_weight": 0.2,
    "instance_temperature": 0.2,
    "learning_rate": 2e-3,
    "decay": "step",
    "final_fraction": 0.0,
    "warmup_from": 0.0,
}


class Choice(NamedTuple):
    """How a collection is made."""

    embedding: config.Config | None  # of `embed.embed_dataset`; None: trained from scratch
    training: config.Config  # its data set is the features, where these are embedded
    reasons: list[str]  # lines for a person


def choose(
    source: str, num_images: int, given: Mapping[str, Any], features: str, weights: str = ""
) -> Choice:
    """The settings for a number of images.

    Args:
        source: of the images, as `--dataset` has it.
        num_images: N.
        given: settings that a person chose, which go before.
        features: folder for the vectors of a frozen network.
        weights: file of weights that Keras keeps, as `find_weights` gives it; "" for none.

    Raises:
        UserError: there are too few images, or a setting breaks its rule.
    """
    check_count(source, num_images)
    given = {"dataset": source, **given}
    if weights and "backbone" not in given:
        name = next(name for name, file in CACHED.items() if pathlib.Path(weights).name == file)
        given |= {"backbone": f"keras:{name}", "backbone_weights": weights}
    if is_pretrained(given):
        return _on_features(num_images, given, features)
    return _from_scratch(num_images, given)


def check_count(source: str, num_images: int) -> None:
    """Raises `UserError` where there are too few images for a training."""
    if num_images < LEAST:
        raise UserError(
            f"{source}: {counted(num_images, 'image')}, too few to train on; give {LEAST} or more"
        )


def find_weights(folder: pathlib.Path = _CACHE) -> str:
    """The file of weights that Keras has downloaded before; "" where there is none."""
    found = (folder.expanduser() / file for file in CACHED.values())
    return next((str(path) for path in found if path.is_file()), "")


def is_pretrained(given: Mapping[str, Any]) -> bool:
    """Whether settings name a network with weights."""
    saved = str(given.get("backbone", "")).startswith("saved_model:")
    return saved or given.get("backbone_weights", "none") != "none"


def _on_features(count, given, features):
    trained = given.get("train_backbone", "none")
    if trained != "none":
        raise UserError(
            f"--train_backbone={trained}: a collection embeds by a pretrained network as it is; "
            "leave it out, or train one with hqc_tf.train"
        )
    schedule = _schedule(count, _SEEN_OF_FEATURES, given)
    frozen = {"image_size": _SIDE, "train_backbone": "none"}
    # Images of a kind and the very nearest, both: benchmarks/README.md.
    refit = _refit(count, given, refit="neighbors", input_share=0.5)
    embedding = config.Config(**frozen | schedule | refit | given)
    own = {name: value for name, value in given.items() if name not in _OF_NETWORK}
    training = config.Config(**schedule | refit | own | {"dataset": f"features:{features}"})
    reasons = [
        f"network: {embedding.backbone}, pretrained and frozen, at {embedding.image_size} pixels; "
        f"the plain view and {VIEWS} random views of each image are embedded once",
        _describe_training(count, training),
    ]
    return Choice(embedding, training, reasons)


def _from_scratch(count, given):
    own = {
        **_RECIPE,
        **_schedule(count, _SEEN_FROM_SCRATCH, given),
        "backbone_width": 16,
        "precision": "mixed_bfloat16",
        **_refit(count, given, refit="opq"),
    }
    training = config.Config(**own | given)
    reasons = [
        f"network: {training.backbone} from scratch, at {training.image_size} pixels, for want of "
        "a pretrained one; a color histogram may find more in few photos. What helps: --backbone="
        "keras:NAME --backbone_weights=FILE, or --backbone=saved_model:DIR",
        _describe_training(count, training),
    ]
    return Choice(None, training, reasons)


def _refit(count, given, **settings):
    """`settings` where there is what a refit takes, and it is wanted."""
    words = given.get("num_words", config.Config.num_words)
    enough = opq.is_installed() and count >= max(_LEAST_TO_HOLD_OUT, 2 * words)
    return settings if enough and given.get("refit") != "none" else {}


def _schedule(count, seen, given):
    """Settings that let a training see about `seen` images in batches that fit `count`."""
    fits = 2 ** max(0, (count // 8).bit_length() - 1)
    batch = given.get("batch_size", max(_LEAST_BATCH, min(_MOST_BATCH, fits)))
    epochs = given.get("epochs", max(2, min(_MOST_EPOCHS, seen // count)))
    return {
        "batch_size": batch,
        "epochs": epochs,
        "warmup_epochs": min(max(1, epochs // 20), epochs - 1),
        "num_neighbors": min(20, batch // 2),
        "held_out": 1000 if count >= _LEAST_TO_HOLD_OUT else 0,
    }


def _describe_training(count, settings):
    steps = settings.epochs * max(1, count // settings.batch_size)
    return (
        f"training: {settings.epochs} epochs, {steps} steps of {settings.batch_size} images, "
        f"without labels; {settings.bits} bits an image"
    )


# Settings of the network and of its input, which a training on its vectors has not.
_OF_NETWORK = frozenset(
    field.name
    for field in dataclasses.fields(config.Config)
    if field.name.startswith(("backbone", "image_", "resize_", "train_backbone"))
)
