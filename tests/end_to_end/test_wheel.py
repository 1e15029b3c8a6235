"""The wheel holds all that the commands need, and the container's files name what exists."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.support import ROOT

# Runs each command of a list in one process.
RUN_ALL = """
import importlib, json, pathlib, sys
import hqc_tf.commands  # absl's flags, which the first command would take with it
from commands import run
site, *commands = json.loads(sys.argv[1])
for module, *arguments in commands:
    done = run(module, *arguments)
    assert done.status == 0, (module, done.stdout, done.stderr)
for name in ("hqc_tf", "export"):
    path = pathlib.Path(importlib.import_module(name).__file__)
    assert path.is_relative_to(site), path
    assert (path.parent / "py.typed").exists(), name
"""


def kept_for_docker():
    """Names at the root that .dockerignore keeps: all is ignored but what a line with ! names."""
    first, *rest = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    return [pattern[1:] for pattern in rest if pattern.startswith("!")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed wheel, built from what a container gets of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in kept_for_docker():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"]
    built = subprocess.run(wheel, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("pip reaches no package registry, which has the setuptools to build with")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("hqc_tf-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", path]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


@pytest.mark.long
def test_commands_run_from_the_wheel(site, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=[12, 8]))
    tiny = (
        "--num_books=2 --num_words=4 --word_dim=3 --num_neighbors=3 --batch_size=4 --epochs=1 "
        "--warmup_epochs=0 --top_k=5 --held_out=0 --joint_views "
        "--instance_embedding_weight=0 --consistency_weight=0 --part_neighbor_weight=0 "
        "--codeword_diversity_weight=0"
    )
    runs = [
        ["hqc_tf.train", "--dataset=features:x.npy", "--workdir=run", *tiny.split()],
        ["export.saved_model", "--workdir=run", "--output=serving"],
        ["export.index", "--saved_model=serving", "--dataset=features:x.npy", "--output=index"],
        ["export.search", "--index=index", "--k=3", "--output=found.jsonl", "--embeddings=x.npy"],
        ["hqc_tf.report", "--workdir=run"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([str(site), *runs])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}/tests/support:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").open()]
    assert [len(line["ids"]) for line in found] == 12 * [3]
    kept = ("static/browse.js", "static/browse.css", "static/icon.svg", "openapi.json",
            "base.html.jinja", "page.html.jinja", "duplicates.html.jinja")  # fmt: skip
    assert [name for name in kept if not (site / "export/browse" / name).exists()] == []
    assert "<style>" in (tmp_path / "run/report.html").read_text()


def test_the_container_copies_and_starts_what_exists():
    dockerfile = (ROOT / "Dockerfile").read_text()
    kept = kept_for_docker()
    assert [name for name in kept if not (ROOT / name).exists()] == []
    sources = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.M)
    assert sources
    for source in " ".join(sources).split():
        assert (ROOT / source).exists()
        assert source == "." or source in kept
    module, *_ = json.loads(re.search(r"^CMD (.*)$", dockerfile, re.M)[1])
    assert importlib.util.find_spec(module)
