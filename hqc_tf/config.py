"""The settings of a run: one dataclass, the absl flags made from it, and the flagfile it writes.

Every setting is here once, with its default (the authors' for CIFAR-10), its one-line help and its
rule. Layers, losses and data code take values and never read a flag.
"""

import contextlib
import dataclasses
import math
import numbers
import os
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from hqc_tf import files
from hqc_tf.errors import UserError

FUSIONS = ("sum", "concat", "max", "quantized", "embedding", "cross")
DISTANCES = ("l2", "squared")
# What a setting of a type takes, NumPy's numbers too, and how it is named.
_TAKEN = {int: numbers.Integral, float: numbers.Real}
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a str or a path"}
# The byte order mark with which some editors begin a file.
_MARK = "\ufeff"


def _setting(default: Any, text: str, choices=None, least=None, above=None, most=None, opens=None):
    """A field of `Config`; `opens` names the theme of which it is the first."""
    rules = {"choices": choices, "least": least, "above": above, "most": most}
    return dataclasses.field(default=default, metadata={"text": text, "opens": opens, **rules})


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; each field is a flag of the same name.

    Names of data sets and backbones are checked where those are defined.

    Raises:
        UserError: a value breaks its rule, or two settings contradict each other.
    """

    dataset: str = _setting(
        "cifar10",
        "training images: a data set's name, folder:PATH, a quoted file pattern, tfds:NAME/SPLIT, "
        "tfrecord:PATTERN or features:PATH",
        opens="data",
    )
    data_dir: str = _setting(
        "",
        "folder of prepared TFDS data, empty: TFDS's own (~/tensorflow_datasets); with flickr25k "
        "and nuswide, folder of their lists and photos",
    )
    on_bad_image: str = _setting(
        "skip",
        "image files that cannot be decoded: skip and list them in rejects.jsonl, or stop",
        choices=("skip", "stop"),
    )
    max_pixels: int = _setting(
        100_000_000,
        "pixels of the largest image file that is read; those of over 100 million are made smaller "
        "as they are read, for which they take up to 12 bytes a pixel",
        least=100_000_000,
        most=1_000_000_000,
    )
    image_size: int = _setting(
        32, "side of the network's square input, in pixels", least=8, most=4096
    )
    resize_size: int = _setting(
        0,
        "shorter side before the center crop when encoding, in pixels; 0: image_size",
        least=0,
        most=8192,
    )
    feature_width: int = _setting(
        0, "numbers of a feature, taken from the data with features:FILE; 0: images", least=0
    )
    feature_norm: str = _setting(
        "standard",
        "features before the projection: none, unit (length one), or standard (unit, then without "
        "their mean and divided by one deviation)",
        choices=("none", "unit", "standard"),
    )
    feature_dropout: float = _setting(
        0.5, "share of a feature's numbers that a view leaves out", least=0, most=0.99
    )
    feature_noise: float = _setting(
        0.0, "deviation of noise added to a view of a feature, as a share of the features'", least=0
    )
    backbone: str = _setting(
        "resnet18_cifar",
        "network: a name in hqc_tf/backbones/, such as resnet50 or vgg16, keras:NAME of "
        "tf.keras.applications, such as keras:MobileNetV2, or saved_model:PATH, a SavedModel or "
        "a .keras file",
        opens="network",
    )
    backbone_width: int = _setting(
        64,
        "channels of the first stage, to which the others are proportional; the paper's is 64",
        least=1,
        most=4096,
    )
    backbone_weights: str = _setting(
        "none",
        "initial weights of the backbone: none (random), imagenet (vgg16 and keras:NAME), or with "
        "keras:NAME the path of their file",
    )
    backbone_pixels: str = _setting(
        "0..1",
        "scale on which saved_model:PATH takes pixels; imagenet: without ImageNet's mean, divided "
        "by its deviation",
        choices=("0..1", "-1..1", "imagenet", "0..255"),
    )
    backbone_digest: str = _setting(
        "", "SHA-256 of saved_model:PATH and its scale, taken from them; empty: another network"
    )
    train_backbone: str = _setting(
        "all", "which of the backbone's layers train: all, none, or last:N; the others stay frozen"
    )
    backbone_rate: float = _setting(
        1.0, "learning rate of the backbone's weights, as a factor of the others'", above=0
    )
    projection_norm: bool = _setting(
        False, "batch norm before the ReLU of the projection; the authors' has none"
    )
    embedding_length: float = _setting(
        0.0, "length to which every embedding is scaled; 0: not scaled, as the authors'", least=0
    )
    num_books: int = _setting(
        8, "codebooks, M; an image takes M * log2(K) bits", least=1, most=4096, opens="quantizer"
    )
    num_words: int = _setting(16, "codewords per book, K: a power of two from 2 to 256", least=2)
    word_dim: int = _setting(
        16, "numbers per codeword, D; an embedding has M * D", least=1, most=4096
    )
    quantizer_temperature: float = _setting(
        0.2, "divides squared distances to the codewords; a smaller one assigns harder", above=0
    )

    instance_quantized_weight: float = _setting(
        1.0, "weight of instance contrast on the quantized embedding", least=0, opens="loss"
    )
    instance_embedding_weight: float = _setting(
        1.0, "weight of instance contrast on the raw embedding", least=0
    )
    consistency_weight: float = _setting(0.4, "weight of the consistency term", least=0)
    part_neighbor_weight: float = _setting(0.1, "weight of the part neighbor term", least=0)
    codeword_diversity_weight: float = _setting(
        0.2, "weight of the codeword diversity term", least=0
    )
    decorrelation_weight: float = _setting(
        0.0, "weight of decorrelating the numbers of the raw embedding", least=0
    )
    reconstruction_weight: float = _setting(
        0.0, "weight of ordering images as the features of a frozen backbone do", least=0
    )
    book_classification_weight: float = _setting(
        0.0, "weight of classifying which book a part came from", least=0
    )
    cross_quantized_weight: float = _setting(
        0.0, "weight of SPQ's cross quantized contrast", least=0
    )
    instance_temperature: float = _setting(
        0.5, "divides the cosines of both instance contrast terms", above=0
    )
    consistency_temperature: float = _setting(
        0.2, "divides the cosines of the consistency term", above=0
    )
    consistency_fusion: str = _setting(
        "sum", "vector that the consistency term compares", choices=FUSIONS
    )
    part_neighbor_temperature: float = _setting(
        0.5, "divides the cosines of the part neighbor term", above=0
    )
    num_neighbors: int = _setting(
        20, "nearest items per book that the part neighbor term keeps near", least=1
    )
    include_positive: bool = _setting(
        False,
        "part neighbor term: count the item itself and its other view as neighbors",
    )
    codeword_diversity_temperature: float = _setting(
        1.0, "divides the cosines of the codeword diversity term", above=0
    )
    cross_quantized_temperature: float = _setting(
        0.5, "divides the cosines of the cross quantized term", above=0
    )

    epochs: int = _setting(
        800,
        "passes over the training images; more of them train a run further, even a finished one",
        least=1,
        most=10**6,
        opens="training",
    )
    init_from: str = _setting(
        "",
        "workdir of another run, whose weights this one starts from; empty: random ones, or "
        "backbone_weights",
    )
    batch_size: int = _setting(
        256, "images per step, over all replicas together", least=2, most=2**20
    )
    optimizer: str = _setting(
        "adam",
        "adam (with L2 in the gradient, the authors'), or lamb for large batches",
        choices=("adam", "lamb"),
    )
    learning_rate: float = _setting(5e-4, "learning rate after the warm-up", above=0)
    warmup_epochs: int = _setting(
        10, "epochs in which the rate rises linearly, step by step", least=0
    )
    warmup_from: float = _setting(1e-5, "learning rate of the first step", least=0)
    final_fraction: float = _setting(0.1, "fraction of the rate to which the cosine falls", least=0)
    decay: str = _setting(
        "epoch",
        "how the cosine falls: epoch by epoch, the authors' way, or step by step",
        choices=("epoch", "step"),
    )
    weight_decay: float = _setting(1e-5, "L2 factor of all weights", least=0)
    seed: int = _setting(
        1, "seed of initial weights, order of images and augmentation", least=0, most=2**32 - 1
    )
    held_out: int = _setting(
        1000,
        "images held out from training, a tenth at most; recall@1 of their codes, which needs no "
        "labels, selects the best weights",
        least=0,
    )
    refit: str = _setting(
        "none",
        "after training, rotation and codebooks anew by OPQ of the embeddings, kept where that is "
        "better without labels; neighbors: before it, embeddings become the mean of their nearest "
        "images', which finds more of a kind and less of the same; none, as the authors'. Always "
        "kept with --input_share or --mirror_mean",
        choices=("none", "opq", "neighbors"),
    )
    input_share: float = _setting(
        0.0,
        "share of a refitted embedding that its input keeps (features, those of a frozen backbone, "
        "else oriented gradients of the pixels), which finds more of the very nearest; 0: none, as "
        "the authors'",
        least=0,
        most=1,
    )
    mirror_mean: bool = _setting(
        False,
        "a refitted embedding is of the mean of an image and its mirror image, which finds more "
        "and takes twice the time to encode; off, as the authors'",
    )
    crop_area: float = _setting(
        0.08,
        "least area of a random crop, as a fraction of the image",
        above=0,
        most=1,
        opens="augmentation",
    )
    crop_ratio: float = _setting(
        4 / 3, "most ratio of the sides of a random crop, in either direction", least=1
    )
    flip_probability: float = _setting(
        0.5, "probability that a view is mirrored left to right", least=0, most=1
    )
    jitter: float = _setting(
        0.4, "most change of brightness, contrast and saturation, as a factor", least=0, most=1
    )
    hue_shift: float = _setting(
        0.1, "most shift of the hue, in turns of the color circle", least=0, most=0.5
    )
    gray_probability: float = _setting(
        0.2, "probability that a view loses its color", least=0, most=1
    )
    blur_sigma: float = _setting(
        2.0, "most sigma of the blur, in pixels; 0.1: none to speak of", least=0.1
    )
    strategy: str = _setting(
        "one_device",
        "one_device; mirrored: every GPU of this machine (without any, its logical CPUs); "
        "multi_worker: the machines of TF_CONFIG; tpu",
        choices=("one_device", "mirrored", "multi_worker", "tpu"),
        opens="machines",
    )
    tpu: str = _setting("", "with --strategy=tpu, name of the TPU; empty: this machine's")
    sync_batch_norm: bool = _setting(
        False, "batch-norm statistics over the batch of all replicas; off: of each replica"
    )
    augment_on: str = _setting(
        "host",
        "where color and blur are computed: host (CPU, in parallel) or device (in the step)",
        choices=("host", "device"),
    )
    joint_views: bool = _setting(
        False,
        "both views in one pass, with batch-norm statistics over both; the authors use two passes",
    )
    precision: str = _setting(
        "float32",
        "of the network (float32 is used where bfloat16 is no faster); losses are float32 or wider",
        choices=("float32", "mixed_bfloat16", "float64"),
    )
    checkpoint_steps: int = _setting(
        200, "steps between two saved states, from which a run resumes", least=1
    )
    checkpoint_minutes: float = _setting(
        30.0, "minutes after which a state is saved before that many steps", above=0
    )

    queries: str = _setting(
        "",
        "queries of the evaluation, as dataset; all images of dataset are then trained on and "
        "searched; empty: of dataset itself",
        opens="evaluation",
    )
    labels: str = _setting(
        "",
        "CSV file with the columns id (or path) and label, of all images and queries; empty: "
        "sub-folders, or the data set's own",
    )
    top_k: int = _setting(1000, "R of mAP@R: results per query", least=1)
    distance: str = _setting(
        "l2",
        "asymmetric distance in evaluation: l2 (sum of norms, the authors') or squared",
        choices=DISTANCES,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            value = _of_type(field, given)
            _check_rule(field.name, given, value, field.metadata)
            object.__setattr__(self, field.name, value)
        _check_together(self)

    @property
    def bits(self) -> int:
        """Bits of a code: M * log2(K)."""
        return self.num_books * (self.num_words.bit_length() - 1)

    @property
    def plain_sizes(self) -> tuple[int, int]:
        """Shorter side before the center crop and side of the crop, in pixels, when encoding."""
        return self.resize_size or self.image_size, self.image_size

    @property
    def refit_changes_graph(self) -> bool:
        """Whether a refit adds to the encoder's graph, so that it is always kept."""
        return bool(self.input_share) or self.mirror_mean

    def term_weights(self) -> dict[str, float]:
        """Name of each loss term whose weight is above zero -> its weight."""
        ending = "_weight"
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith(ending)]
        return {n.removesuffix(ending): getattr(self, n) for n in names if getattr(self, n) > 0}


def _of_type(field, value):
    """The value of a setting as its type; UserError where it is of another."""
    kind = field.type
    if kind is str and isinstance(value, str | os.PathLike):
        value = os.fspath(value)
    elif kind in (int, float) and isinstance(value, _TAKEN[kind]) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = kind(value)
    if type(value) is not kind and not (kind is str and isinstance(value, str)):
        raise UserError(f"--{field.name}={value!r}: of another type; give {_KINDS[kind]}")
    return value


def _check_rule(name, value, own, rule):
    """Checks `own`, the value as its type; the message has it as it was given."""
    if rule["choices"] and own not in rule["choices"]:
        raise UserError(f"--{name}={value}: unknown; take one of {', '.join(rule['choices'])}")
    if isinstance(own, float) and not math.isfinite(own):
        raise UserError(f"--{name}={value}: must be a finite number; give one")
    if rule["least"] is not None and not value >= rule["least"]:
        raise UserError(f"--{name}={value}: must be at least {rule['least']}; raise it")
    if rule["above"] is not None and not value > rule["above"]:
        raise UserError(f"--{name}={value}: must be above {rule['above']}; raise it")
    if rule["most"] is not None and not value <= rule["most"]:
        raise UserError(f"--{name}={value}: must be at most {rule['most']}; lower it")


def _check_together(config):
    c = config
    if c.num_words & (c.num_words - 1) or c.num_words > 256:
        raise UserError(
            f"--num_words={c.num_words}: a word's number must be whole bits of one byte; "
            "take a power of two from 2 to 256"
        )
    paths = c.dataset, c.data_dir, c.init_from, c.queries, c.labels, c.backbone, c.backbone_weights
    for name in (*paths, c.tpu):
        if "\n" in name or "\r" in name or name != name.strip():
            # A flagfile has one flag a line, and absl strips the lines.
            raise UserError(
                f"{name!r}: a path must not contain a line break or begin or end with a blank, "
                "or flags.txt could not repeat it; rename it"
            )
        if not files.is_utf8(name):
            raise UserError(f"{name}: a path must be UTF-8; rename it")
    if c.warmup_epochs >= c.epochs:
        raise UserError(
            f"--warmup_epochs={c.warmup_epochs}: must be fewer than --epochs={c.epochs}; lower it"
        )
    if 0 < c.resize_size < c.image_size:
        raise UserError(
            f"--resize_size={c.resize_size}: must hold a crop of --image_size={c.image_size}; "
            "raise it, or give 0"
        )
    if c.part_neighbor_weight and c.num_neighbors >= 2 * c.batch_size - 2:
        raise UserError(
            f"--num_neighbors={c.num_neighbors}: a batch of {c.batch_size} has only "
            f"{2 * c.batch_size - 2} negatives, and the term needs some beyond the neighbors; "
            "lower it or raise --batch_size"
        )
    if c.backbone_rate != 1 and (c.train_backbone == "none" or c.feature_width):
        raise UserError(
            f"--backbone_rate={c.backbone_rate}: has no effect, since no backbone trains; leave it "
            "out, or give --train_backbone=all or last:N"
        )
    is_images = not (c.feature_width or c.dataset.startswith("features:"))
    if c.reconstruction_weight and c.train_backbone != "none" and is_images:
        raise UserError(
            f"--reconstruction_weight={c.reconstruction_weight}: needs features that stay; give "
            "--train_backbone=none, --dataset=features:..., or leave it out"
        )
    _check_refit(c, is_images)
    if not c.term_weights():
        raise UserError("all loss weights are zero: nothing to train; raise one")


def _check_refit(config, is_images):
    c = config
    of_refits = {f"--input_share={c.input_share}": c.input_share, "--mirror_mean": c.mirror_mean}
    for flag, given in of_refits.items():
        if given and c.refit == "none":
            raise UserError(
                f"{flag}: has no effect without a refit; give --refit=opq, or leave it out"
            )
    if c.mirror_mean and (c.train_backbone == "none" or not is_images):
        raise UserError(
            "--mirror_mean: needs images and a backbone that trains on them; leave it out"
        )
    if c.mirror_mean and not c.flip_probability:
        raise UserError(
            "--mirror_mean: training shows no mirror images; raise --flip_probability, or leave "
            "it out"
        )


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines an absl flag for every setting in `flag_values`.

    A command then calls `flags.adopt_module_key_flags(config)`, so that --helpshort lists them.
    """
    kinds = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(Config):
        text, choices = field.metadata["text"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, field.default, choices, text, flag_values=flag_values)
        else:
            define = kinds.get(field.type, flags.DEFINE_string)
            define(field.name, field.default, text, flag_values=flag_values)


def themes() -> dict[str, str]:
    """Name of each setting -> theme under which it is listed."""
    found, theme = {}, None
    for field in dataclasses.fields(Config):
        theme = field.metadata["opens"] or theme
        found[field.name] = theme
    return found


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """The `Config` of parsed flags."""
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: flag_values[name].value for name in names})


def to_flagfile(config: Config) -> str:
    """The text of a flagfile that repeats the run of `config`."""
    head = "# The settings of this run, resolved; --flagfile=THIS --workdir=OTHER repeats it.\n"
    settings = dataclasses.asdict(config)
    return head + "".join(f"--{name}={value}\n" for name, value in settings.items())


def parse(arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """The `Config` of a command line, and its arguments that are not flags.

    The flags of this process do not change.

    Raises:
        UserError: a flag is unknown or its value of another type, or as `Config`.
    """
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_flag(flags.Flag(flags.ArgumentParser(), None, "flagfile", "", ""), values)
    rest = read_flags(values, ["", *arguments])[1:]
    return from_flags(values), rest


def read_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Sets absl's `values` from a command line; returns the arguments that are not flags.

    Raises:
        UserError: a flag is unknown or its value is of another type.
    """
    try:
        rest = values([argv[0], *_expanded(values, argv[1:])])
    except flags.IllegalFlagValueError as error:
        missing = re.findall(r"Flag --(\w+) must have a value other than None", str(error))
        if not missing:
            raise UserError(f"{error}; fix the flag or its file") from error
        kinds = {name: _form(values[name].help) for name in missing}
        give = " and ".join(f"--{name}={kind}" for name, kind in kinds.items())
        raise UserError(f"missing: give {give}") from error
    except (flags.Error, UnicodeDecodeError, RecursionError) as error:
        reason = "a flagfile is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{reason}; fix the flag or its file") from error
    except ValueError as error:
        raise UserError(f"--flagfile: {error}; name a file of flags") from error
    given = [(f"--{name}=", values[name].value) for name in values]
    for name, value in [*given, *(("", argument) for argument in rest)]:
        _check_value(name, value)
    return rest


def _form(text):
    """What a flag takes, by its help."""
    if "folder:" in text:
        return "folder:PATH"
    return "DIR" if "folder" in text else "VALUE"


def _expanded(values, words):
    """A command line with the contents of its flagfiles, in which editors may leave a mark."""
    words = values.read_flags_from_files(words, force_gnu=False)
    if not any(word.startswith(_MARK) for word in words):
        return words
    plain = [word.removeprefix(_MARK) for word in words]
    lines = [p for p, word in zip(plain, words, strict=True) if p == word or p.startswith("-")]
    return _expanded(values, lines)


def _check_value(name, value):
    if isinstance(value, list):
        for one in value:
            _check_value(name, one)
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{name}{value}: a name must not contain a NUL character; remove it")
    # An argument that is no flag may be a file of any name.
    if name and isinstance(value, str) and not files.is_utf8(value):
        raise UserError(f"{name}{value}: a name must be UTF-8; rename it")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}{value}: must be a finite number; give one")
