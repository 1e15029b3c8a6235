"""What --help prints: one entry a flag, with its choices and default, within the line."""

import subprocess
import sys

import pytest
from absl import flags

from hqc_tf import commands
from hqc_tf.errors import UserError
from tests.support import ROOT
from tests.support import commands as here


@pytest.fixture
def listed():
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of this run", values, required=True)
    flags.DEFINE_enum("kind", "near", ["near", "far"], "how far", values)
    flags.DEFINE_bool("fast", True, "whether it hurries", values)
    flags.DEFINE_integer("most", None, "of them", lower_bound=1, flag_values=values)
    flags.DEFINE_string("a_name_beyond_the_column", "", "its text is on a line below", values)
    return [
        values[name] for name in ("workdir", "kind", "fast", "most", "a_name_beyond_the_column")
    ]


def test_an_entry_has_choices_and_default(listed):
    groups = {commands.OWN: listed[:2], "speed": listed[2:]}
    assert commands.describe("Does things.", groups, 80).splitlines() == [
        "Does things.",
        "",
        "this command:",
        "  --workdir               folder of this run (required)",
        "  --kind                  how far (one of near, far; default near)",
        "",
        "speed:",
        "  --[no]fast              whether it hurries (default true)",
        "  --most                  of them",
        "  --a_name_beyond_the_column",
        "                          its text is on a line below",
        "",
        "--flagfile=FILE takes flags from a file, one a line; --helpfull lists all flags.",
    ]


@pytest.mark.parametrize("width", [60, 100])
def test_long_texts_are_wrapped(width):
    values = flags.FlagValues()
    flags.DEFINE_string("input", "", "long words " * 40, values)
    lines = commands.describe(None, {"a": [values["input"]]}, width).splitlines()
    entry = lines[1:-2]
    assert max(map(len, entry)) <= width
    column = len("  --input  ")
    assert {line[:column] for line in entry[1:]} == {" " * column}
    assert " ".join(" ".join(entry).split()) == "--input " + ("long words " * 40).strip()


@pytest.mark.parametrize("package", ["hqc_tf", "export"])
def test_the_commands_of_a_package_are_listed(package):
    done = here.run(package, "-h")
    lines = done.stdout.splitlines()
    assert (done.status, done.stderr, lines[-1]) == (0, "", "Each takes --help.")
    shown = {line.split()[2]: line for line in lines[:-2]}
    assert {"hqc_tf": "hqc_tf.train", "export": "export.index"}[package] in shown
    for name, line in shown.items():
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        assert len(line) < 140 and "`" not in line and line.count("  ") >= 1
    assert here.run(package) == done
    wrong = here.run(package, "train")
    assert wrong.status == 2 and wrong.stderr.startswith("error: train: no flag of this command")


def test_a_missing_flag_is_named_with_its_form():
    assert "error: missing: give --workdir=DIR (" in here.run("hqc_tf.evaluate").stderr
    done = here.run("export.gallery")
    assert "error: missing: give --index=DIR and --dataset=VALUE (" in done.stderr
    assert done.status == 2
    done = here.run("export.encode", "--saved_model=x", "--output=y")
    assert "error: missing: give --input=folder:PATH (" in done.stderr


def test_a_path_without_a_flag_is_told_the_flag(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    for folder in (photos, run):
        folder.mkdir()
    (run / "flags.txt").touch()
    for words, flag in [
        (["hqc_tf.train", "--workdir=x", photos], f"--dataset=folder:{photos}"),
        (["hqc_tf.evaluate", "--workdir=x", run], f"--workdir={run}"),
        (["hqc_tf.evaluate", "--workdir=x", run / "flags.txt"], f"--dataset={run}/flags.txt"),
    ]:
        done = here.run(*words)
        assert done.status == 2
        assert f"error: {words[-1]}: not a flag; give {flag} (" in done.stderr


def test_help_by_its_short_name():
    done = here.run("export.index", "-h")
    assert done.status == 0 and "--id_prefix" in done.stdout
    assert done.stdout == here.run("export.index", "--help").stdout


WRITES = """
import os, sys
from hqc_tf import commands

def main(_):
    os.write(2, b"Corrupt JPEG data: 3 extraneous bytes before marker 0xd9\\nof a library\\n")
    os.write(2, b"I0000 00:00:1.5 1 compiler.h:186] Compiled cluster\\nF0000 fatal\\n")
    print("of this program", file=sys.stderr)
    return 7

commands.run(main)
"""


def test_remarks_of_libraries_are_left_out_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (7, "")
    assert sorted(done.stderr.splitlines()) == ["F0000 fatal", "of a library", "of this program"]


def test_what_is_read_is_given_once():
    for words in (["--codes=a", "--codes=b"], ["--codes", "a", "-codes=a"]):
        done = here.run("export.index", *words, "--output=x")
        assert done.status == 2
        assert "error: --codes: given 2 times, and only the last would count; give" in done.stderr
    # A later flag of another kind wins, as in absl.
    assert "--codes: given" not in here.run("export.index", "--output=x", "--output=y").stderr


def expand(text):
    values = flags.FlagValues()
    flags.DEFINE_string("dataset", None, "", values)
    values([sys.argv[0], f"--dataset={text}"])
    commands._expand_paths(values)
    return values.dataset


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PHOTOS", "/data/photos")
    monkeypatch.chdir(tmp_path)
    for text, expected in {
        "~": "/home/me", "~/a": "/home/me/a", "folder:~/a": "folder:/home/me/a",
        "$PHOTOS/**/*.jpg": "/data/photos/**/*.jpg", "a/~b": "a/~b", "tfds:a/~b": "tfds:a/~b",
        "folder:${PHOTOS}/x": "folder:/data/photos/x", "tfrecord:~/a*": "tfrecord:/home/me/a*",
        "a$": "a$", "cifar10/test[:50%]": "cifar10/test[:50%]",
    }.items():  # fmt: skip
        assert expand(text) == expected
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "", values)
    flags.DEFINE_multi_integer("books", [4], "", flag_values=values)
    values([sys.argv[0], "--workdir=~/a", "--workdir=b", "--books=8"])
    commands._expand_paths(values)
    assert (values.workdir, values.books) == (["/home/me/a", "b"], [8])
    with pytest.raises(
        UserError, match=r"^--dataset=folder:\$NONE/a: the environment has no \$NONE"
    ):
        expand("folder:$NONE/a")
    (tmp_path / "$NONE").mkdir()
    assert expand("folder:$NONE") == "folder:$NONE"
