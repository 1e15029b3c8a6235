"""The documentation: its links lead somewhere, its flags exist, and its commands run as printed."""

import contextlib
import functools
import pathlib
import re
import shlex
import shutil
import sys
import tomllib
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from absl import flags

from hqc_tf import backbones, config, label_free
from hqc_tf import commands as command_runner
from tests.support import ROOT, commands
from tests.support.networks import TWO_CONVOLUTIONS

DOCUMENTS = [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "benchmarks/README.md")
    for path in sorted(ROOT.glob(pattern))
]
# Programs of others that the documents name; those of Kubernetes, Docker and TPUs run nowhere here.
OTHERS = {"docker", "kubectl", "gcloud", "grep", "tensorboard", "chromium", "git", "apt-get"}
# What is in a command that this machine cannot run, or not in seconds.
NOT_RUN = (
    "configs/",  # trainings of minutes or days
    "tfds:",  # data sets that are not prepared
    "/share",
    "--server",
    "export.browse",  # a server, which does not end
    "hqc_tf.collection",  # trains for minutes; tests/hqc_tf/collection runs it
    "--runner",
    "--num_leaves",  # thousands of distinct codes
    "runs/32",
    "hqc_tf.prepare",
    "--image_size=64",  # the README's training
    "--train_backbone",  # as the embedding beside it
    "benchmarks.",
)
PHOTOS = 80


class Line(NamedTuple):
    """A command line of a document, `arguments` without what sets its environment."""

    document: str
    arguments: tuple[str, ...]

    @property
    def module(self):
        """Module that it runs, or None."""
        return self.arguments[2] if self.arguments[:2] == ("python", "-m") else None


def blocks(document, language):
    """The fenced blocks of a document in a language; commands are in those of none."""
    text = (ROOT / document).read_text()
    return [
        body
        for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
        if kind == language
    ]


def command_lines(document):
    found = []
    for block in blocks(document, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                found.append(Line(document, tuple(words)))
    return found


LINES = [line for document in DOCUMENTS for line in command_lines(document)]
MODULE_LINES = [line for line in LINES if line.module and line.module != "pip"]


def anchors(document):
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), target


# A changelog names what is gone, too.
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != "CHANGELOG.md"])
def test_files_that_are_named_exist(document):
    named = re.findall(
        r"`((?:hqc_tf|export|configs|docs|tests|benchmarks)/[\w./]*|"
        r"(?:requirements|constraints)[\w-]*\.txt|[A-Z]\w+\.md)`",
        (ROOT / document).read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.startswith(("docs/", "bench"))])
def test_contents_at_the_head_list_every_section(document):
    text = (ROOT / document).read_text()
    listed = re.findall(r"^- \[[^\]]+\]\(#([^)]+)\)$", text, re.M)
    sections = re.findall(r"^## (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    assert listed == [re.sub(r"[^\w\- ]", "", s.lower()).replace(" ", "-") for s in sections]


@pytest.fixture
def parse_only(monkeypatch):
    """Makes a command parse its flags, check its settings, and end."""

    def parse(_, takes_arguments=False):
        flags.FLAGS(sys.argv)
        if "num_books" in flags.FLAGS:
            config.from_flags()

    monkeypatch.setattr(command_runner, "run", parse)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    "line",
    [line for line in MODULE_LINES if "--helpshort" not in line.arguments],
    ids=lambda line: " ".join(line.arguments)[10:90],
)
def test_flags_exist_and_go_together(line, parse_only):
    arguments = line.arguments[3:]
    if line.module == "benchmarks.pytorch_training":
        # PyTorch is not installed with the rest.
        config.parse(arguments)
        return
    done = commands.run(line.module, *arguments)
    assert done.status == 0, done.stderr


def test_commands_are_known():
    other = [line for line in LINES if line not in MODULE_LINES]
    known = OTHERS | {"make", "pip", "python", "python3"}
    assert [line for line in other if line.arguments[0] not in known] == []


@pytest.mark.parametrize("program", ["ablation", "label_free_choice"])
def test_budgets_are_those_of_the_results(program):
    def budget(words):
        (found,) = (w for w in words if w.startswith("--budget="))
        return [word for word in found.split() if not word.startswith("--data_dir=")]

    (line,) = (line for line in LINES if line.module == f"benchmarks.{program}")
    text = (ROOT / f"benchmarks/results/{program}.md").read_text()
    (command,) = re.findall(rf"python -m benchmarks.{program} .*", text)
    assert budget(line.arguments) == budget(shlex.split(command))


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in LINES:
        if line.arguments[0] == "make":
            asked = [word for word in line.arguments[1:] if "=" not in word]
            assert set(asked) <= targets, line


def test_extras_and_requirement_files_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in LINES:
        if "pip" not in line.arguments[:1]:
            continue
        for extra in re.findall(r"^\.\[(.*)\]$", "\n".join(line.arguments), re.M):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), line
        for word in line.arguments:
            if word.endswith(".txt"):
                assert (ROOT / word).is_file(), line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are run, with the files that they read."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos/holiday/2019").mkdir(parents=True)
    random = np.random.default_rng(1)
    for number in range(PHOTOS):
        small = random.integers(0, 256, (6, 8, 3), np.uint8)
        picture = PIL.Image.fromarray(small).resize((96, 72), PIL.Image.Resampling.BICUBIC)
        below = "holiday/2019/" if number >= PHOTOS - 5 else ""
        picture.save(folder / "photos" / f"{below}{number:02}.jpg")
    for name in ("query.jpg", "query1.jpg", "query2.png"):
        with PIL.Image.open(folder / "photos/03.jpg") as picture:
            picture.save(folder / name)
    (folder / "ids.txt").write_text("00.jpg\n")
    np.save(folder / "queries.npy", random.normal(size=(3, 128)).astype(np.float32))
    np.save(folder / "vectors.npy", random.normal(size=(300, 16)).astype(np.float32))
    np.save(folder / "new_vectors.npy", random.normal(size=(3, 16)).astype(np.float32))
    save_network(folder / "net")
    with tf.io.TFRecordWriter(str(folder / "photos-0.tfrecord")) as writer:
        for path in sorted(folder.glob("photos/*.jpg"))[:3]:
            features = {"image/encoded": path.read_bytes(), "image/filename": path.name.encode()}
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in features.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    return folder


def save_network(path):
    """A SavedModel from images of any size to 12 numbers."""
    network = tf.Module()
    network.kernel = tf.Variable(tf.random.stateless_normal([8, 8, 3, 12], [1, 2]))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def embed(images):
        return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, network.kernel, 8, "VALID")), [1, 2])

    network.embed = embed
    tf.saved_model.save(network, str(path), signatures=embed)


def run_here(line):
    done = commands.run(line.module, *line.arguments[3:])
    assert done.status == 0, f"{line}: {done.stderr}"


def run_python(document):
    (block,) = blocks(document, "python")
    names = {}
    exec(compile(block, document, "exec"), names)
    return names


def runs_here(line):
    return not any(part in word for word in line.arguments for part in NOT_RUN)


@pytest.fixture(scope="module")
def quickly():
    """Makes the default network one that is traced in a second, and does once what is repeated."""
    with pytest.MonkeyPatch.context() as patch:
        quick = backbones.BACKBONES[TWO_CONVOLUTIONS]
        patch.setitem(backbones.BACKBONES, config.Config().backbone, quick)
        # Of an epoch, of which the documents' trainings have up to 20.
        patch.setattr(label_free, "evaluate", functools.cache(label_free.evaluate))
        patch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
        yield


@pytest.fixture(scope="module")
def readme(folder, quickly):
    """The folder after the commands of README.md."""
    with contextlib.chdir(folder):
        for line in MODULE_LINES:
            endless = line.module in ("export.browse", "hqc_tf.collection")
            if line.document == "README.md" and not endless:
                run_here(line)
    return folder


@pytest.mark.long
def test_the_readme_trains_indexes_and_searches(readme):
    assert (readme / "runs/photos/metrics.jsonl").exists()
    assert (readme / "serving/photos/1/saved_model.pb").exists()
    with PIL.Image.open(readme / "neighbors.png") as picture:
        assert picture.width > 100


@pytest.mark.long
def test_the_python_of_the_readme_searches_the_photos(readme):
    with contextlib.chdir(readme):
        names = run_python("README.md")
    assert np.shape(names["ids"]) == np.shape(names["distances"]) == (1, 10)
    assert len(names["images"]) == PHOTOS


@pytest.mark.long
def test_the_documents_run_as_printed(readme, monkeypatch):
    monkeypatch.chdir(readme)
    # What a reader has by other commands: a run of the demo, and codes that an encoder made.
    shutil.copytree("runs/photos", "runs/demo")
    ran = []
    documents = ("install", "serve", "search", "browse", "train")
    for document in (f"docs/{name}.md" for name in documents):
        for line in MODULE_LINES:
            if line.document != document or not runs_here(line):
                continue
            if "--codes=more/" in line.arguments and not pathlib.Path("more").exists():
                shutil.copytree("photos", "more_photos")
                encode = (
                    "--saved_model=serving/hqc",
                    "--input=folder:more_photos",
                    "--output=more/",
                )
                assert commands.run("export.encode", *encode).status == 0
            run_here(line)
            ran.append(line.module)
    assert {"hqc_tf.embed", "export.encode", "export.index", "export.search"} <= set(ran)
    assert {"hqc_tf.evaluate", "hqc_tf.report", "export.gallery"} <= set(ran)
    assert {"export.duplicates", "export.searcher"} <= set(ran)
    names = run_python("docs/search.md")
    assert len(names["ids"]) == PHOTOS
