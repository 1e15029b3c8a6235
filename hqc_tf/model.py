"""The Keras model: encoder, quantizer, and a train step over two views."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from hqc_tf import backbones, config, distribute, losses
from hqc_tf.backbones.gradients import OrientedGradients
from hqc_tf.data.batches import no_autograph, plain_batches
from hqc_tf.data.images import Images
from hqc_tf.data.screening import naming_a_bad_file
from hqc_tf.data.views import recolor_views
from hqc_tf.errors import UserError
from hqc_tf.losses import Encoding
from hqc_tf.numerics import branches
from hqc_tf.quantizer import ProductQuantizer, at_least_float32
from hqc_tf.retrieval import Encoded, collect

PROJECTION = 512
# Pixels, a side, whose gradients an embedding keeps, and the layer that puts them there.
_MOST_SIDE, _JOINED = 32, "joined"
# Images that are encoded together.
ENCODE_BATCH = 256


def build_encoder(settings: config.Config) -> tf.keras.Model:
    """Backbone and projection: float [B, size, size, 3] in [0, 1] -> float [B, M*D].

    The projection is a layer of 512 with ReLU and one of M*D, which start as `_two_layers` says,
    without batch norm or L2 norm. Source: the authors' program. For short trainings
    `projection_norm` puts batch norm before the ReLU, and `embedding_length` scales every embedding
    to one length.
    """
    if settings.feature_width:
        features = tf.keras.layers.Input([settings.feature_width])
        normed = FeatureNorm(settings.feature_norm, name="feature_norm")(features)
        return tf.keras.Model(features, _project(normed, settings), name="encoder")
    _check_digest(settings)
    backbone = backbones.build_backbone(
        settings.backbone,
        settings.backbone_width,
        settings.image_size,
        settings.backbone_weights,
        settings.sync_batch_norm,
        settings.backbone_pixels,
    )
    backbones.freeze(backbone, settings.train_backbone)
    embedding = _project(backbone.output, settings)
    return tf.keras.Model(backbone.input, embedding, name="encoder")


def _check_digest(settings):
    found = backbones.digest(settings.backbone, settings.backbone_pixels)
    if settings.backbone_digest not in ("", found):
        raise UserError(
            f"--backbone={settings.backbone}: is another network than the run's (SHA-256 "
            f"{found[:16]}, not {settings.backbone_digest[:16]}); restore that one"
        )


def _project(features, settings):
    width = settings.num_books * settings.word_dim
    layers = tf.keras.layers
    if settings.projection_norm:
        inner = layers.Dense(
            PROJECTION, use_bias=False, kernel_initializer="he_normal", name="projection"
        )
        normed = backbones.batch_norm(settings.sync_batch_norm)(inner(features))
        embedding = layers.Dense(width, name="embedding")(layers.ReLU()(normed))
    else:
        embedding = _two_layers(features, PROJECTION, width, "projection", "embedding")
    if settings.embedding_length:
        wide = at_least_float32(tf.keras.mixed_precision.global_policy())
        embedding = layers.UnitNormalization(dtype=wide)(embedding)
        embedding = layers.Rescaling(settings.embedding_length, dtype=wide)(embedding)
    return embedding


class FeatureNorm(tf.keras.layers.Layer):
    """Brings features of any network to one scale: float [B, E] -> float [B, E].

    Args:
        kind: "none"; "unit", length one; or "standard", unit, then less `mean` [E] and divided by
            `deviation`, one number, which `adapt` sets.
    """

    def __init__(self, kind: str, **kwargs):
        kwargs.setdefault("dtype", at_least_float32(tf.keras.mixed_precision.global_policy()))
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, input_shape: Sequence[int | None]) -> None:
        own = {"trainable": False, "initializer": "zeros"}
        self.mean = self.add_weight(name="mean", shape=[input_shape[-1]], **own)
        self.deviation = self.add_weight(
            name="deviation", shape=[], trainable=False, initializer="ones"
        )
        super().build(input_shape)

    def adapt(self, mean: np.ndarray, deviation: float) -> None:
        """Sets what `features.statistics` gives of the training features."""
        self.mean.assign(mean)
        self.deviation.assign(deviation)

    def call(self, features: tf.Tensor) -> tf.Tensor:
        if self.kind == "none":
            return features
        unit = tf.math.l2_normalize(features, axis=1)
        return (unit - self.mean) / self.deviation if self.kind == "standard" else unit

    def get_config(self) -> dict:
        return super().get_config() | {"kind": self.kind}


class HQC(tf.keras.Model):
    """Hierarchical Quantization Consistency (Wu, Zhang, Liwicki, BMVC 2023).

    `fit` takes the dataset of `training_views`: (view_a, view_b), float [B, size, size, 3] each, in
    [0, 1], or features float [B, E]. The views go through the network one after the other, so that
    batch-norm statistics are per view; with `joint_views` they go together, and each is normalized
    by the mean and variance of both. The loss is the weighted sum of the terms whose weight is
    above zero, over the batch of all replicas.

    Args:
        settings: of the run.

    Call arguments:
        images: float [B, size, size, 3] in [0, 1].
        training: whether batch norm uses the batch.

    Returns of a call: an `Encoding`.

    Attributes:
        encode: float32 [B, size, size, 3] in [0, 1] -> embedding float [B, M*D], codes uint8 [B,
            M].
    """

    def __init__(self, settings: config.Config, **kwargs):
        super().__init__(**kwargs)
        self.settings = settings
        self.encoder = build_encoder(settings)
        self.quantizer = ProductQuantizer(
            settings.num_books,
            settings.num_words,
            settings.word_dim,
            settings.quantizer_temperature,
        )
        self.quantizer.build([None, settings.num_books * settings.word_dim])
        self.weights_of_terms = settings.term_weights()
        self.book_classifier = None
        if "book_classification" in self.weights_of_terms:
            self.book_classifier = _book_classifier(settings, self.quantizer.dtype)
        self._features_too = None
        if "reconstruction" in self.weights_of_terms:
            both = [self._features, self.encoder.output]
            self._features_too = tf.keras.Model(self.encoder.input, both)
        self._make_encode()
        self.trackers = [
            tf.keras.metrics.Mean(name=name) for name in ["loss", *self.weights_of_terms]
        ]

    def _make_encode(self):
        view = tf.TensorSpec(self.encoder.input_shape, tf.float32)
        self.encode = tf.function(self._encode, input_signature=[view], autograph=False)

    @property
    def _features(self):
        """What the backbone gives, in the encoder's graph."""
        return self.encoder.get_layer("projection").input

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        return self.trackers

    def compile(self, optimizer: tf.keras.optimizers.Optimizer, **kwargs) -> None:
        super().compile(optimizer=optimizer, **kwargs)
        # Variables that the first step made would have it traced a second time. Keras' legacy
        # optimizers, LAMB among them, cannot make theirs before.
        if isinstance(self.optimizer, tf.keras.optimizers.Optimizer):
            self.optimizer.build(self.trainable_variables)
        if self.settings.backbone_rate != 1:
            slowed = self.build_backbone().trainable_variables
            self.optimizer.set_rate_factor(slowed, self.settings.backbone_rate)

    def call(self, images: tf.Tensor, training: bool = False) -> Encoding:
        embedding = tf.cast(self.encoder(images, training=training), self.quantizer.dtype)
        return Encoding(embedding, *self.quantizer(embedding))

    def build_backbone(self) -> tf.keras.Model:
        """The part of the encoder before the head: float [B, size, size, 3] -> float [B, E]."""
        return tf.keras.Model(self.encoder.input, self._features)

    def build_head(self) -> tf.keras.Model | None:
        """The part of the encoder after the backbone: float [B, E] -> embedding float [B, M*D].

        None where `--input_share` or `--mirror_mean` has the embedding take more than it gives.
        """
        if self.settings.feature_width:
            return self.encoder
        names, trains = self._layer_names(), self.settings.train_backbone != "none"
        if "projection" not in names or (_JOINED in names and trains):
            return None
        return tf.keras.Model(self._features, self.encoder.output)

    def prepare_refit(self) -> None:
        """Makes the encoder's graph that of refitted weights, which are still to be set."""
        if self.settings.mirror_mean:
            self.add_mirror()
        if self.settings.input_share:
            self.join_input()

    def add_mirror(self) -> None:
        """Has the encoder take the mean of an image and its mirror image, for `--mirror_mean`.

        It is the mean of what goes into the layer "embedding", which keeps its weights; so the
        embedding may have a set length behind it.
        """
        layers, image = tf.keras.layers, tf.keras.layers.Input(self.encoder.input_shape[1:])
        old = self.encoder.get_layer("embedding")
        hidden = tf.keras.Model(self.encoder.input, old.input, name="hidden")
        both = hidden(tf.concat([image, tf.reverse(image, [2])], axis=0))
        one, other = tf.split(tf.cast(both, tf.float32), 2)
        layer = layers.Dense.from_config(old.get_config())
        output = layer((one + other) / 2)
        layer.set_weights(old.get_weights())
        for after in self.encoder.layers[self.encoder.layers.index(old) + 1 :]:
            output = after(output)
        self.encoder = tf.keras.Model(image, output, name="encoder")
        self._make_encode()

    def join_input(self) -> tf.keras.Model:
        """Puts a layer [B, E] -> [B, M*D] behind the encoder, for `--input_share`.

        Returns:
            The encoder up to that layer, whose weights are still to be set: the embedding and the
            input of what trains, both of length one, side by side. The input is features, those of
            a frozen backbone, or `OrientedGradients` of the pixels, averaged to `_MOST_SIDE` a side
            at most.
        """
        layers, wide = tf.keras.layers, self.quantizer.dtype
        parts = [self.encoder.output, self._input_of_what_trains()]
        unit = [layers.UnitNormalization(dtype=wide)(part) for part in parts]
        both = layers.Concatenate(dtype=wide)(unit)
        width = self.settings.num_books * self.settings.word_dim
        joined = layers.Dense(width, dtype=wide, name=_JOINED)(both)
        before = tf.keras.Model(self.encoder.input, both)
        self.encoder = tf.keras.Model(self.encoder.input, joined, name="encoder")
        self._make_encode()
        return before

    def _input_of_what_trains(self):
        c, layers = self.settings, tf.keras.layers
        if c.feature_width:
            return self.encoder.input
        if c.train_backbone == "none":
            return self._features
        pool = layers.AveragePooling2D(-(-c.image_size // _MOST_SIDE), dtype="float32")
        return OrientedGradients()(pool(self.encoder.input))

    def last_layer(self) -> tf.keras.layers.Dense:
        """The last layer of the encoder that has weights: what a rotation is folded into."""
        return self.encoder.get_layer(_JOINED if _JOINED in self._layer_names() else "embedding")

    def _layer_names(self):
        return {layer.name for layer in self.encoder.layers}

    def encode_images(self, images: Images, label: str = "") -> Encoded:
        """Embeddings and codes of the plain view of every image, in their order.

        Args:
            images: N images, in memory or as files.
            label: what the progress bar calls them; no bar where it is empty.

        Returns:
            `Encoded`: embeddings float32 [N, M*D] and codes uint8 [N, M].

        Raises:
            UserError: a file cannot be decoded, and is named; or the model takes images and these
                are features, or the reverse.
        """
        c = self.settings
        widths = 0 if images.features is None else images.features.shape[1], c.feature_width
        if widths[0] != widths[1]:
            kinds = [f"features of {width} numbers" if width else "images" for width in widths]
            raise UserError(f"{kinds[0]}: the model takes {kinds[1]}; give such")
        views = plain_batches(images, *c.plain_sizes, ENCODE_BATCH)
        with naming_a_bad_file(images):
            return self.encode_views(views, len(images), label)

    def encode_views(self, views: Iterable[tf.Tensor], count: int, label: str = "") -> Encoded:
        """As `encode_images`, of the first `count` in batches of float32 [b, size, size, 3]."""
        return collect(map(self.encode, views), count, label)

    def _encode(self, images):
        embedding = tf.cast(self.encoder(images, training=False), self.quantizer.dtype)
        return embedding, self.quantizer.encode(embedding)

    @no_autograph
    def train_step(self, batch: tuple) -> dict[str, tf.Tensor]:
        """One update from an element of `training_views`; returns the losses' means."""
        # The scopes are what a profile adds up; Keras puts "gradient_tape" before the backward's.
        with tf.name_scope("views"):
            on_device = self.settings.augment_on == "device" and not self.settings.feature_width
            views = recolor_views(*batch) if on_device else batch
        with tf.GradientTape() as tape:
            with tf.name_scope("forward"):
                (a, b), features = self._encode_views(views)
            with tf.name_scope("losses"):
                terms = self.loss_terms(a, b, features)
                weighted = [self.weights_of_terms[name] * terms[name] for name in terms]
                total = tf.reduce_sum(tf.stack(weighted))
        gradients = tape.gradient(total, self.trainable_variables)
        with tf.name_scope("update"):
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._track([total, *terms.values()])

    def _encode_views(self, views):
        """The encodings of both views, and their features where a term compares them."""
        if not self.settings.joint_views:
            encoded, features = zip(*map(self._encode_view, views), strict=True)
        else:
            both, of_both = self._encode_view(tf.concat(views, 0))
            encoded = [
                Encoding(*half) for half in zip(*(tf.split(x, 2) for x in both), strict=True)
            ]
            features = () if of_both is None else tf.split(of_both, 2)
        return encoded, () if self._features_too is None else features

    def _encode_view(self, view):
        if self._features_too is None:
            return self(view, training=True), None
        found = self._features_too(view, training=True)
        features, embedding = (tf.cast(x, self.quantizer.dtype) for x in found)
        return Encoding(embedding, *self.quantizer(embedding)), features

    def loss_terms(
        self, a: Encoding, b: Encoding, features: Sequence[tf.Tensor] = ()
    ) -> dict[str, tf.Tensor]:
        """This replica's share of each loss term, unweighted.

        Args:
            a, b: encodings of the two views of this replica's images.
            features: float [b, E] of both, where the reconstruction term has a weight.

        Returns:
            Name of the term -> float scalar, in the order of the settings, without those of weight
            zero.
        """
        views = (a, b)
        # Each term has tensors of its own, for the reason that `branches` gives.
        local, shared = branches(views, 2)
        flat = tf.nest.flatten(shared)
        gathered, offset = distribute.gather_batch([*flat, *features])
        everyone, all_features = gathered[: len(flat)], tuple(gathered[len(flat) :])
        both = local, tf.nest.pack_sequence_as(views, everyone)
        own = branches(both, len(self.weights_of_terms))
        known = tuple(features), all_features
        return {
            name: losses.TERMS[name](
                losses.Pair(*local, *everyone, offset, *known, self.book_classifier), self.settings
            )
            for name, (local, everyone) in zip(self.weights_of_terms, own, strict=True)
        }

    def get_config(self) -> dict:
        return {"settings": dataclasses.asdict(self.settings), "name": self.name}

    @classmethod
    def from_config(cls, values: dict, custom_objects: dict | None = None) -> "HQC":
        return cls(config.Config(**values["settings"]), name=values["name"])

    def _track(self, shares):
        # A metric is averaged over replicas, and the shares add up to the loss.
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        for tracker, share in zip(self.trackers, shares, strict=True):
            tracker.update_state(share * replicas)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def build_model(settings: config.Config) -> HQC:
    """A new `HQC` under the settings' precision, its weights drawn from their seed."""
    tf.keras.utils.set_random_seed(settings.seed)
    return blank_model(settings)


def blank_model(settings: config.Config) -> HQC:
    """As `build_model`, for weights that are read; random numbers elsewhere go on as they are."""
    tf.keras.mixed_precision.set_global_policy(settings.precision)
    return HQC(settings)


def _book_classifier(settings, dtype):
    """A small network from a part of f to the book it came from: D -> 4D, ReLU -> M."""
    part = tf.keras.layers.Input([settings.word_dim], dtype=dtype)
    books = _two_layers(part, 4 * settings.word_dim, settings.num_books, dtype=dtype)
    return tf.keras.Model(part, books, name="book_classifier")


def _two_layers(x, hidden, width, hidden_name=None, name=None, dtype=None):
    """A layer of `hidden` with ReLU and one of `width`.

    Kernels start as the authors' do, N(0, 0.01) and Glorot uniform. Biases start at zero, Keras'
    default: PyTorch's, within 1 / sqrt(fan in), change mAP by less than a seed does.
    """
    inner = tf.keras.layers.Dense(
        hidden,
        activation="relu",
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        dtype=dtype,
        name=hidden_name,
    )
    return tf.keras.layers.Dense(width, dtype=dtype, name=name)(inner(x))
