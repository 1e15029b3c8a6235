"""The settings of a run: one dataclass, the absl flags made from it, and the flagfile it leaves.

Every setting stands here once, with its default (the authors' for CIFAR-10), its one-line help and
its rule. Nothing to the right of this module reads a flag.
"""

import dataclasses
import math

from absl import flags

from hqc_tf.errors import UserError

DATASETS = (
    "fashion_mnist",
    "cifar10",
    "cifar10_protocol1",
    "cifar10_protocol2",
    "flickr25k",
    "nuswide",
    "nuswide_10500",
)
FUSIONS = ("sum", "concat", "max", "quantized", "embedding", "cross")
DISTANCES = ("l2", "squared")


def _setting(default, text, choices=None, least=None, above=None, most=None, opens=None):
    """A field of `Config`; the one that `opens` a theme stands first in it."""
    rules = {"choices": choices, "least": least, "above": above, "most": most}
    return dataclasses.field(default=default, metadata={"text": text, "opens": opens, **rules})


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run; each field is a flag of the same name.

    Raises:
      UserError: a value breaks its rule, or two settings do not go together.
    """

    dataset: str = _setting(
        "cifar10",
        f"what to learn from: {', '.join(DATASETS)}, or folder:PATH, any tree of images",
        opens="data",
    )
    data_dir: str = _setting(
        "",
        "where prepared TFDS data lies, empty: TFDS's own place (~/tensorflow_datasets); of "
        "flickr25k and nuswide, where lists and photos lie",
    )
    on_bad_image: str = _setting(
        "skip",
        "with folder:PATH, skip and list in rejects.jsonl what cannot be decoded, or stop at it",
        choices=("skip", "stop"),
    )
    image_size: int = _setting(
        32, "side of the square the network sees, in pixels", least=8, most=4096
    )
    resize_size: int = _setting(
        0,
        "shorter side before the centre crop when encoding, in pixels; 0: image_size",
        least=0,
        most=8192,
    )
    backbone: str = _setting(
        "resnet18_cifar",
        "the convolutional network, a name in hqc_tf.backbones",
        opens="network",
    )
    backbone_width: int = _setting(
        64,
        "channels of the first stage; the others scale with it, 64 is the paper's",
        least=1,
        most=4096,
    )
    backbone_weights: str = _setting(
        "none", "start of the backbone: none, or ImageNet's (vgg16)", choices=("none", "imagenet")
    )
    num_books: int = _setting(
        8, "codebooks, M; an image takes M * log2(K) bits", least=1, most=4096, opens="quantizer"
    )
    num_words: int = _setting(16, "codewords per book, K: a power of two from 2 to 256", least=2)
    word_dim: int = _setting(16, "numbers per codeword, D", least=1, most=4096)
    quantizer_temperature: float = _setting(
        0.2, "divides squared distances to the codewords; smaller is harder", above=0
    )

    instance_quantized_weight: float = _setting(
        1.0, "weight of instance contrast on the quantized embedding", least=0, opens="loss"
    )
    instance_embedding_weight: float = _setting(
        1.0, "weight of instance contrast on the raw embedding", least=0
    )
    consistency_weight: float = _setting(0.4, "weight of the consistency term", least=0)
    part_neighbor_weight: float = _setting(0.1, "weight of the part neighbour term", least=0)
    codeword_diversity_weight: float = _setting(
        0.2, "weight of the codeword diversity term", least=0
    )
    book_classification_weight: float = _setting(
        0.0, "weight of guessing which book a part came from", least=0
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
        "sum", "which vector the consistency term compares", choices=FUSIONS
    )
    part_neighbor_temperature: float = _setting(
        0.5, "divides the cosines of the part neighbour term", above=0
    )
    num_neighbors: int = _setting(
        20, "nearest items per book that the part neighbour term keeps near", least=1
    )
    include_positive: bool = _setting(
        False,
        "part neighbour term: leave in the item itself and its other view, as the authors can",
    )
    codeword_diversity_temperature: float = _setting(
        1.0, "divides the cosines of the codeword diversity term", above=0
    )
    cross_quantized_temperature: float = _setting(
        0.5, "divides the cosines of the cross quantized term", above=0
    )

    epochs: int = _setting(
        800, "passes over the training images", least=1, most=10**6, opens="training"
    )
    batch_size: int = _setting(
        256, "images per step, over all replicas together", least=2, most=2**20
    )
    optimizer: str = _setting(
        "adam",
        "adam (L2 joined to the gradient, the authors'), or lamb for large batches",
        choices=("adam", "lamb"),
    )
    learning_rate: float = _setting(5e-4, "rate after the warm-up", above=0)
    warmup_epochs: int = _setting(10, "epochs of linear rise, a step at a time", least=0)
    warmup_from: float = _setting(1e-5, "rate of the first step", least=0)
    final_fraction: float = _setting(
        0.1, "the cosine falls, an epoch at a time, to this part of the rate", least=0
    )
    weight_decay: float = _setting(1e-5, "L2 factor, on all weights", least=0)
    seed: int = _setting(
        1, "of initial weights, order of images and augmentation", least=0, most=2**32 - 1
    )
    held_out: int = _setting(
        1000,
        "training images kept from learning, a tenth at most; recall@1 of their codes, without "
        "labels, chooses the best weights",
        least=0,
    )
    strategy: str = _setting(
        "one_device",
        "one_device; mirrored: every GPU of this machine (without any, its logical CPUs); "
        "multi_worker: the machines of TF_CONFIG; tpu",
        choices=("one_device", "mirrored", "multi_worker", "tpu"),
        opens="machines",
    )
    tpu: str = _setting("", "name of the TPU with --strategy=tpu; empty: this machine's")
    sync_batch_norm: bool = _setting(
        False, "batch-norm statistics over the batch of all replicas; off: over each one's own"
    )
    augment_on: str = _setting(
        "host",
        "where colours and blur are made: host, beside the device, or device, in the step",
        choices=("host", "device"),
    )
    joint_views: bool = _setting(
        False,
        "both views in one pass, with batch-norm statistics over both; the authors' way is two",
    )
    precision: str = _setting(
        "float32",
        "of the network, float32 where the device gains nothing; losses stay float32 or wider",
        choices=("float32", "mixed_bfloat16", "float64"),
    )
    checkpoint_steps: int = _setting(200, "steps between two saved states to resume from", least=1)
    checkpoint_minutes: float = _setting(
        30.0, "minutes after which a state is saved though the steps are fewer", above=0
    )

    top_k: int = _setting(
        1000, "R of mAP@R: results counted per query", least=1, opens="evaluation"
    )
    distance: str = _setting(
        "l2",
        "asymmetric distance in evaluation: l2 (sum of norms, the authors'), or squared",
        choices=DISTANCES,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_rule(field.name, getattr(self, field.name), field.metadata)
        _check_together(self)

    @property
    def bits(self):
        """Bits of a code: M * log2(K)."""
        return self.num_books * (self.num_words.bit_length() - 1)

    @property
    def plain_sizes(self):
        """Of the view that is encoded, in pixels: shorter side before the crop, then its side."""
        return self.resize_size or self.image_size, self.image_size

    def term_weights(self):
        """Weight of each loss term by its name, those of weight zero left out."""
        ending = "_weight"
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith(ending)]
        return {n.removesuffix(ending): getattr(self, n) for n in names if getattr(self, n) > 0}


def _check_rule(name, value, rule):
    if rule["choices"] and value not in rule["choices"]:
        raise UserError(f"--{name}={value}: unknown; take one of {', '.join(rule['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
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
            f"--num_words={c.num_words}: a code is whole bits in one byte a book; "
            "take a power of two from 2 to 256"
        )
    if c.dataset not in DATASETS and not c.dataset.startswith("folder:"):
        raise UserError(
            f"--dataset={c.dataset}: unknown; take {', '.join(DATASETS)}, or folder:PATH"
        )
    for name in (c.dataset, c.data_dir):
        if "\n" in name or name != name.strip():
            # A flagfile has one flag a line, and absl strips the lines.
            raise UserError(
                f"{name!r}: a folder's name may hold no line break and no blank at its ends, or "
                "flags.txt could not repeat it; rename it"
            )
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
            f"{2 * c.batch_size - 2} negatives, and the term needs some beyond the neighbours; "
            "lower it or raise --batch_size"
        )
    if not c.term_weights():
        raise UserError("all loss weights are zero: nothing would be learned; raise one")


def define_flags(flag_values=flags.FLAGS):
    """Makes an absl flag of every setting in `flag_values`.

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


def themes():
    """Name of each setting -> theme that it stands under."""
    found, theme = {}, None
    for field in dataclasses.fields(Config):
        theme = field.metadata["opens"] or theme
        found[field.name] = theme
    return found


def from_flags(flag_values=flags.FLAGS):
    """The `Config` that parsed flags ask for."""
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: flag_values[name].value for name in names})


def to_flagfile(config):
    """The text of a flagfile that repeats the run of `config`."""
    head = "# The settings of this run, resolved; --flagfile=THIS --workdir=OTHER repeats it.\n"
    settings = dataclasses.asdict(config)
    return head + "".join(f"--{name}={value}\n" for name, value in settings.items())


def parse(arguments):
    """The `Config` that arguments of a command ask for, and those that are no flags.

    The flags of this process are not touched.

    Raises:
      UserError: a flag is unknown or its value of another kind, or as `Config`.
    """
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_flag(flags.Flag(flags.ArgumentParser(), None, "flagfile", "", ""), values)
    rest = read_flags(values, ["", *arguments])[1:]
    return from_flags(values), rest


def read_flags(values, argv):
    """Sets absl's `values` from a command line; returns what is no flag."""
    try:
        rest = values(argv)
    except (flags.Error, UnicodeDecodeError, RecursionError) as error:
        said = "a flagfile is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{said}; mend the flag or its file") from error
    except ValueError as error:
        raise UserError(f"--flagfile: {error}; name a file of flags") from error
    given = [(f"--{name}=", values[name].value) for name in values]
    for name, value in [*given, *(("", argument) for argument in rest)]:
        _check_value(name, value)
    return rest


def _check_value(name, value):
    if isinstance(value, list):
        for one in value:
            _check_value(name, one)
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{name}{value}: no name holds a NUL character; take it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}{value}: must be a finite number; give one")
