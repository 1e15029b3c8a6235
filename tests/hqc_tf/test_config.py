"""The settings: every rule's words, flags and flagfiles, and how a command stops."""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from hqc_tf import config
from hqc_tf.config import Config
from hqc_tf.errors import UserError
from hqc_tf.workdir import FLAGFILE, read_settings
from tests.support import ROOT, commands

COMMAND = """
from absl import flags

from hqc_tf import commands, config

def main(arguments):
    settings = config.from_flags()
    print(settings.num_books, settings.dataset, arguments)

config.define_flags()
flags.adopt_module_key_flags(config)
commands.run(main, takes_arguments=True)
"""


def parse(*arguments):
    """The `Config` of a command line, without touching the flags of this process."""
    settings, _ = config.parse(arguments)
    return settings


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def run_command(tmp_path):
    """Runs a small command with these flags, in a process of its own."""
    (tmp_path / "command.py").write_text(COMMAND)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(tmp_path / "command.py"), *arguments],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    return run


def test_defaults_are_the_authors_for_cifar10():
    c = Config()
    assert (c.epochs, c.batch_size, c.learning_rate, c.weight_decay) == (800, 256, 5e-4, 1e-5)
    assert (c.warmup_epochs, c.warmup_from, c.final_fraction) == (10, 1e-5, 0.1)
    assert (c.num_words, c.word_dim, c.quantizer_temperature, c.num_neighbors) == (16, 16, 0.2, 20)
    assert (c.instance_temperature, c.consistency_temperature) == (0.5, 0.2)
    assert (c.part_neighbor_temperature, c.codeword_diversity_temperature) == (0.5, 1.0)
    assert (c.backbone, c.image_size, c.top_k, c.distance) == ("resnet18_cifar", 32, 1000, "l2")


def test_terms_of_weight_zero_are_left_out():
    assert Config().term_weights() == {
        "instance_quantized": 1.0,
        "instance_embedding": 1.0,
        "consistency": 0.4,
        "part_neighbor": 0.1,
        "codeword_diversity": 0.2,
    }
    changed = Config(consistency_weight=0.0, cross_quantized_weight=0.5).term_weights()
    assert "consistency" not in changed
    assert changed["cross_quantized"] == 0.5


@pytest.mark.parametrize(
    ("num_books", "num_words", "bits"),
    [(4, 16, 16), (8, 16, 32), (16, 16, 64), (4, 256, 32), (3, 2, 3)],
)
def test_bits_of_a_code(num_books, num_words, bits):
    assert Config(num_books=num_books, num_words=num_words).bits == bits


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config)])
def test_every_setting_has_its_flag_with_one_line_of_help(name):
    values = flags.FlagValues()
    config.define_flags(values)
    assert values[name].default == getattr(Config(), name)
    assert values[name].help
    assert "\n" not in values[name].help


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("consistency_fusion", "mean", "sum, concat, max, quantized, embedding, cross"),
        ("optimizer", "sgd", "adam, lamb"),
        ("strategy", "two", "one_device, mirrored, multi_worker, tpu"),
        ("precision", "float16", "float32, mixed_bfloat16, float64"),
        ("distance", "cosine", "l2, squared"),
    ],
)
def test_unknown_choice_is_named_with_the_known_ones(name, value, known):
    with pytest.raises(UserError) as caught:
        Config(**{name: value})
    assert str(caught.value) == f"--{name}={value}: unknown; take one of {known}"


LEAST = {
    f.name: f.metadata["least"]
    for f in dataclasses.fields(Config)
    if f.metadata["least"] is not None
}
ABOVE = [f.name for f in dataclasses.fields(Config) if f.metadata["above"] is not None]


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_too_small_a_value_is_refused(name, least):
    with pytest.raises(UserError) as caught:
        Config(**{name: least - 1})
    assert str(caught.value) == f"--{name}={least - 1}: must be at least {least}; raise it"


MOST = {
    f.name: f.metadata["most"] for f in dataclasses.fields(Config) if f.metadata["most"] is not None
}


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_too_large_a_value_is_refused(name, most):
    with pytest.raises(UserError) as caught:
        Config(**{name: most + 1})
    assert str(caught.value) == f"--{name}={most + 1}: must be at most {most}; lower it"


@pytest.mark.parametrize("name", ABOVE)
@pytest.mark.parametrize("value", [0.0, -0.5])
def test_what_must_be_positive_is(name, value):
    with pytest.raises(UserError) as caught:
        Config(**{name: value})
    assert str(caught.value) == f"--{name}={value}: must be above 0; raise it"


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config) if f.type is float])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name}={value}: must be a finite number; give one"):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("checkpoint_steps", 100.0, "a whole number"),
        ("epochs", "30", "a whole number"),
        ("epochs", True, "a whole number"),
        ("learning_rate", True, "a number"),
        ("mirror_mean", "no", "True or False"),
        ("mirror_mean", 1, "True or False"),
        ("labels", None, "a str or a path"),
        ("dataset", b"x", "a str or a path"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, kind):
    with pytest.raises(UserError) as caught:
        Config(**{name: value})
    assert str(caught.value) == f"--{name}={value!r}: of another type; give {kind}"


@pytest.mark.parametrize(
    ("name", "value", "own"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", np.float32(0.5), 0.5),
        ("top_k", np.int64(5), 5),
        ("dataset", pathlib.Path("a/x.npy"), "a/x.npy"),
    ],
)
def test_a_value_becomes_one_of_its_type_which_a_flagfile_repeats(tmp_path, name, value, own):
    settings = Config(**{name: value})
    assert getattr(settings, name) == own and type(getattr(settings, name)) is type(own)
    path = tmp_path / "x.flags"
    path.write_text(config.to_flagfile(settings))
    assert parse(f"--flagfile={path}") == settings


def test_every_number_has_a_bound():
    numbers = {f.name for f in dataclasses.fields(Config) if f.type in (int, float)}
    assert numbers == {*LEAST, *ABOVE}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_words": 12},
            "--num_words=12: a word's number must be whole bits of one byte; "
            "take a power of two from 2 to 256",
        ),
        (
            {"num_words": 512},
            "--num_words=512: a word's number must be whole bits of one byte; "
            "take a power of two from 2 to 256",
        ),
        *(
            (
                {setting: name},
                f"{name!r}: a path must not contain a line break or begin or end with a blank, "
                "or flags.txt could not repeat it; rename it",
            )
            for setting, name in [
                ("dataset", "folder:a\nb"),
                ("dataset", "folder:a\rb"),
                ("dataset", "folder:a "),
                ("data_dir", "a\nb"),
                ("data_dir", " a"),
                ("backbone", "saved_model:a "),
            ]
        ),
        ({"dataset": "folder:\udcff"}, "folder:\udcff: a path must be UTF-8; rename it"),
        (
            {"epochs": 10, "warmup_epochs": 10},
            "--warmup_epochs=10: must be fewer than --epochs=10; lower it",
        ),
        (
            {"resize_size": 31},
            "--resize_size=31: must hold a crop of --image_size=32; raise it, or give 0",
        ),
        (
            {"batch_size": 11},
            "--num_neighbors=20: a batch of 11 has only 20 negatives, and the term needs some "
            "beyond the neighbors; lower it or raise --batch_size",
        ),
        *(
            (
                {"backbone_rate": 0.1} | other,
                "--backbone_rate=0.1: has no effect, since no backbone trains; leave it out, or "
                "give --train_backbone=all or last:N",
            )
            for other in ({"train_backbone": "none"}, {"feature_width": 3})
        ),
        (
            {"reconstruction_weight": 0.5},
            "--reconstruction_weight=0.5: needs features that stay; give --train_backbone=none, "
            "--dataset=features:..., or leave it out",
        ),
        (
            {"input_share": 0.5},
            "--input_share=0.5: has no effect without a refit; give --refit=opq, or leave it out",
        ),
        (
            {"mirror_mean": True},
            "--mirror_mean: has no effect without a refit; give --refit=opq, or leave it out",
        ),
        *(
            (
                {"mirror_mean": True, "refit": "opq"} | other,
                "--mirror_mean: needs images and a backbone that trains on them; leave it out",
            )
            for other in ({"train_backbone": "none"}, {"feature_width": 3})
        ),
        (
            {"mirror_mean": True, "refit": "opq", "flip_probability": 0.0},
            "--mirror_mean: training shows no mirror images; raise --flip_probability, or leave "
            "it out",
        ),
        (
            {name: 0.0 for name in LEAST if name.endswith("_weight")},
            "all loss weights are zero: nothing to train; raise one",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError) as caught:
        Config(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 12},
        {"batch_size": 2, "part_neighbor_weight": 0.0},
        {"resize_size": 32},
        {"backbone": "vgg16", "backbone_weights": "imagenet", "image_size": 224},
        {"dataset": "folder:some where/photos"},
        {"num_words": 2},
        {"num_words": 256},
        {"epochs": 1, "warmup_epochs": 0},
        {"train_backbone": "last:1", "backbone_rate": 0.1},
        {"train_backbone": "none", "reconstruction_weight": 0.5},
        {"dataset": "features:x.npy", "reconstruction_weight": 0.5},
    ],
)
def test_settings_at_the_edge_of_a_rule_are_taken(settings):
    assert dataclasses.asdict(Config(**settings)).items() >= settings.items()


def test_flags_become_settings():
    parsed = parse("--num_books=4", "--include_positive", "--dataset=folder:x", "--seed=7")
    assert parsed == Config(num_books=4, include_positive=True, dataset="folder:x", seed=7)
    assert parse() == Config()


def test_flagfiles_nest_and_later_flags_win(tmp_path):
    base = write(tmp_path / "base.flags", "# All runs.", "--num_books=4", "--epochs=20", "--seed=3")
    variant = write(tmp_path / "variant.flags", f"--flagfile={base}", "--epochs=30")
    assert parse(f"--flagfile={variant}") == Config(num_books=4, epochs=30, seed=3)
    parsed = parse("--seed=1", f"--flagfile={variant}", "--num_books=16")
    assert parsed == Config(num_books=16, epochs=30, seed=3)


def test_flagfile_repeats_the_run(tmp_path):
    settings = Config(
        dataset="folder:my photos/2020 # best",
        data_dir="/data with=signs",
        include_positive=True,
        learning_rate=1 / 3,
        weight_decay=1e-12,
        consistency_fusion="cross",
        num_books=16,
    )
    path = write(tmp_path / FLAGFILE, config.to_flagfile(settings))
    assert read_settings(tmp_path) == settings
    assert parse(f"--flagfile={path}") == settings


def test_default_flagfile_names_every_setting(tmp_path):
    text = config.to_flagfile(Config())
    names = [line.removeprefix("--").split("=")[0] for line in text.splitlines()[1:]]
    assert names == [f.name for f in dataclasses.fields(Config)]
    write(tmp_path / FLAGFILE, text)
    assert read_settings(tmp_path) == Config()


def test_workdir_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        read_settings(tmp_path / "none")
    message = f"--workdir={tmp_path / 'none'}: no flags.txt there; train into it first"
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num_bokos=4", "Unknown command line flag 'num_bokos'"),
        ("--num_books=four", "num_books=four"),
        ("--num_books=0", "--num_books=0: must be at least 1; raise it"),
        ("--flagfile=gone.flags", "gone.flags"),
    ],
)
def test_spoiled_flagfile_of_a_workdir_is_refused(tmp_path, line, message):
    write(tmp_path / FLAGFILE, line)
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path)


def test_command_gets_settings_and_arguments(run_command):
    done = run_command("--num_books=4", "one.jpg", "--dataset=folder:a b", "\udcff.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 folder:a b ['one.jpg', '\\udcff.jpg']\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_books=0"], "error: --num_books=0: must be at least 1; raise it"),
        (["--epochs=5"], "error: --warmup_epochs=10: must be fewer than --epochs=5; lower it"),
        (["--num_bokos=4"], "error: Unknown command line flag 'num_bokos'. Did you mean: num_book"),
        (["--num_books=four"], "error: flag --num_books=four: invalid literal for int()"),
        (
            ["--tpu=a", "--optimizer=sgd"],
            "error: flag --optimizer=sgd: value should be one of <adam|",
        ),
        (["--flagfile=gone.flags"], "error: "),
        *(
            (
                [f"--{name}=folder:a\udcff"],
                f"error: --{name}=folder:a\\udcff: a name must be UTF-8;",
            )
            for name in ("dataset", "data_dir")
        ),
    ],
)
def test_bad_flags_are_one_line_and_status_2(run_command, arguments, message):
    done = run_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_books=4", "error: num_books=4: not a flag; give --num_books=4 ("),
        ("\N{EN DASH}joint_views", "joint_views: not a flag; give --joint_views ("),
        ("photos", "error: photos: not a flag; leave it out, and put quotes around a value with"),
    ],
)
def test_words_that_are_no_flags_are_refused(word, message):
    done = commands.run("hqc_tf.train", "--workdir=none", word)
    assert done.status == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_mark_at_the_start_of_a_flagfile_is_skipped(tmp_path):
    inner = write(tmp_path / "inner.flags", "\ufeff# a comment", "--num_books=4")
    outer = write(tmp_path / "outer.flags", f"\ufeff--flagfile={inner}", "--seed=3")
    assert parse(f"--flagfile={outer}") == Config(num_books=4, seed=3)


@pytest.fixture
def run_main():
    """Runs a command whose `main` is some code, in a process with redirections of a shell."""

    def run(code, redirections):
        text = f"from hqc_tf import commands\ndef main(_):\n    {code}\ncommands.run(main)"
        line = f"{shlex.quote(sys.executable)} -c {shlex.quote(text)} {redirections}"
        return subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True)  # noqa: S602

    return run


@pytest.mark.parametrize(
    ("redirections", "status", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full", 2, "error: the disk is full ([Errno 28] No space left on device); free"),
        ("| head -n 1", 0, ""),
    ],
)
def test_a_stdout_that_takes_nothing_ends_in_a_line_at_most(run_main, redirections, status, said):
    done = run_main("print('x\\n' * 100000)", redirections)
    assert said in done.stderr and done.stderr.count("\n") == bool(said)
    assert done.returncode == status


def test_an_interrupt_is_one_line(run_main):
    done = run_main("raise KeyboardInterrupt", "")
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("flag", ["--helpshort", "--help", "-?"])
def test_help_is_no_error_and_stands_by_theme(run_command, flag):
    done = run_command(flag)
    assert (done.returncode, done.stderr) == (0, "")
    themes = re.findall(r"^(\w+):$", done.stdout, re.MULTILINE)
    assert themes == [*dict.fromkeys(config.themes().values())]
    assert "  --num_books             codebooks, M; an image takes M * log2(K) bits" in done.stdout


def test_helpfull_is_left_to_absl(run_command):
    assert (
        "--num_books: codebooks, M; an image takes M * log2(K) bits"
        in run_command("--helpfull").stdout
    )


def test_every_setting_stands_under_a_theme():
    themes = config.themes()
    assert [*themes] == [f.name for f in dataclasses.fields(Config)]
    assert [*dict.fromkeys(themes.values())] == [
        "data", "network", "quantizer", "loss", "training", "augmentation", "machines",
        "evaluation",
    ]  # fmt: skip
