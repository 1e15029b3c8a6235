"""A disk that is full: one line and status 2 of every command that writes, and nothing is lost."""

import functools
import shutil

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.campaign.instants import files_of_at_most
from tests.support import commands


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
        yield


@pytest.fixture(scope="module")
def made(encoder, photos, tmp_path_factory):
    """An index that the command made."""
    path = tmp_path_factory.mktemp("made") / "index"
    flags = f"--saved_model={encoder.path}", f"--dataset=folder:{photos}", f"--output={path}"
    assert commands.run("export.index", *flags).status == 0
    return path


@pytest.mark.parametrize("most_bytes", [0, 300])
@pytest.mark.parametrize(
    ("command", "output", "flags"),
    [
        ("export.index", "index", ["--saved_model={encoder}", "--dataset=folder:{photos}"]),
        ("export.index", "index", ["--remove={gone}"]),
        ("export.search", "found.jsonl", ["--index={index}", "--embeddings={queries}"]),
        ("export.search", "found.parquet", ["--index={index}", "--embeddings={queries}"]),
        ("export.encode", "codes", ["--saved_model={encoder}", "--input=folder:{photos}"]),
        ("export.saved_model", "serving", ["--workdir={workdir}"]),
        ("export.searcher", "searcher", ["--saved_model={encoder}", "--index={index}"]),
        ("export.gallery", "n.png", ["--index={own}", "--dataset=folder:{photos}", "--queries=1"]),
    ],
)
def test_one_line_and_nothing_lost(
    encoder, photos, index, workdir, made, tmp_path, command, output, flags, most_bytes
):
    own = tmp_path / "index"
    shutil.copytree(made, own)
    queries, gone = tmp_path / "queries.npy", tmp_path / "gone.txt"
    np.save(queries, np.zeros([60, index.codebooks.shape[0] * index.codebooks.shape[2]]))
    gone.write_text(sorted(photos.rglob("*.png"))[0].relative_to(photos).as_posix())
    names = {
        "encoder": encoder.path, "photos": photos, "index": index.path, "own": own,
        "workdir": workdir, "queries": queries, "gone": gone,
    }  # fmt: skip
    before = contents(tmp_path)
    with files_of_at_most(most_bytes):
        arguments = [flag.format(**names) for flag in flags]
        done = commands.run(command, *arguments, f"--output={tmp_path / output}")
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.status, len(said)) == (2, 1), done.stderr
    assert "File too large" in said[0], said
    after = contents(tmp_path)
    # A folder of codes keeps what is complete of it, to resume.
    assert {name: after.get(name) for name in before} == before
    assert command == "export.encode" or after.keys() == before.keys()
