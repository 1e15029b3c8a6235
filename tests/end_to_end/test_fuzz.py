"""Whatever is in flags, flagfiles and folders, a command ends well, or with one line and status 2.

It never ends in a traceback, and where it fails nothing that was there has changed.
"""

import functools
import pathlib
import tempfile
import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from export.arrays import pack_ids
from export.codes import Shard, start, write_shard
from export.index import write_index
from hqc_tf import config, evaluate, model
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError
from hqc_tf.report import gather, page
from hqc_tf.workdir import read_epochs, read_metrics, read_settings, read_speed
from tests.support import commands, damage

pytestmark = pytest.mark.long
# The same examples on every machine; a failure names its own.
fuzz = functools.partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck]
)
SETTINGS = [f.name for f in config.dataclasses.fields(config.Config)]
OTHER_FLAGS = (
    "workdir", "output", "index", "k", "dataset", "embeddings", "saved_model", "codes", "remove",
    "append", "input", "num_shards", "queries", "top_k", "distance", "version", "weights",
    "deadline", "server", "rerank", "num_leaves", "leaves_to_search", "flagfile", "undefok",
)  # fmt: skip
# A folder that is missing in each, so that flags alone are tried and nothing is begun.
COMMANDS = {
    "hqc_tf.train": ["--dataset=folder:MISSING", "--epochs=0"],
    "hqc_tf.evaluate": ["--workdir=MISSING"],
    "hqc_tf.report": ["--workdir=MISSING"],
    "export.saved_model": ["--workdir=MISSING", "--output=MISSING"],
    "export.index": ["--codes=MISSING", "--output=MISSING"],
    "export.search": ["--index=MISSING", "a.jpg"],
    "export.gallery": ["--index=MISSING", "--dataset=folder:MISSING"],
    "export.encode": ["--saved_model=MISSING", "--input=*.jpg", "--output=MISSING"],
}
VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "-1", "0", "9" * 5000, "1e999", "-inf", "NaN", "0x10", "1_0", "true", "~x"]
    ),
    st.sampled_from(
        [".", "/", "/dev/null", "*", "[", "**", "a:b", "http://[", "\udcff", "\x1b[2J"]
    ),
)
ARGUMENTS = st.one_of(
    st.builds("--{}={}".format, st.sampled_from([*SETTINGS, *OTHER_FLAGS]), VALUES),
    st.builds("--no{}".format, st.sampled_from([*SETTINGS, *OTHER_FLAGS])),
    st.builds("--{}".format, VALUES),
    VALUES,
)
CODEBOOKS = np.random.default_rng(0).normal(size=[2, 16, 3]).astype(np.float32)
CODES = np.random.default_rng(1).integers(0, 16, [12, 2], dtype=np.uint8)
ENCODER = {"fingerprint": "abc", "path": "serving/hqc/1"}


def assert_ends_well(done):
    """A command that has ended as a person wants it; returns whether it did what was asked."""
    assert done.status in (0, 2), done
    if done.status == 2:
        *warnings, line, after = done.stderr.split("\n")
        assert line.startswith("error: ") and line.isprintable() and after == "", done.stderr
        # absl's own, of a flagfile that names itself.
        assert all(warning.startswith(("Warning: Hit circular", "--k=")) for warning in warnings), (
            done.stderr
        )
    return done.status == 0


def ends_well_and_keeps(module, arguments, *folders):
    """As `assert_ends_well`; where the command fails, `folders` are as they were before."""
    before = [damage.files_of(folder) for folder in folders]
    worked = assert_ends_well(commands.run(module, *arguments))
    if not worked:
        assert [damage.files_of(folder) for folder in folders] == before
    return worked


@pytest.fixture(scope="module", autouse=True)
def made_once():
    """What takes TensorFlow seconds and is not what is tried: a network, and an encoder's files.

    An encoder that is damaged has a folder of its own, and so is loaded.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
        patch.setattr(model, "build_model", functools.cache(model.build_model))
        yield


@pytest.mark.parametrize("module", COMMANDS)
@fuzz(max_examples=40)
@given(given_flags=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_flags(module, given_flags):
    with tempfile.TemporaryDirectory() as folder:
        missing = [x.replace("MISSING", f"{folder}/missing") for x in COMMANDS[module]]
        ends_well_and_keeps(module, [*given_flags, *missing], folder)


@fuzz(max_examples=150)
@given(given_flags=st.lists(ARGUMENTS, max_size=4))
def test_settings(given_flags):
    try:
        parsed, _ = config.parse(given_flags)
    except UserError as error:
        assert str(error)
    else:
        assert isinstance(parsed, config.Config)


@fuzz(max_examples=100)
@given(
    text=st.one_of(
        st.binary(max_size=40),
        st.lists(ARGUMENTS, max_size=4).map(
            lambda lines: "\n".join(lines).encode("utf-8", "surrogateescape")
        ),
    ),
    way=st.sampled_from(["alone", "nested", "folder", "itself"]),
)
@example(text=b"--codes=a\0b", way="alone")
@example(text=b"--flagfile=a\0b", way="alone")
@example(text=b"\xff\xfe", way="nested")
def test_flagfiles(text, way):
    with tempfile.TemporaryDirectory() as folder:
        inner, outer = pathlib.Path(folder, "inner.flags"), pathlib.Path(folder, "outer.flags")
        inner.mkdir() if way == "folder" else inner.write_bytes(text)
        if way == "itself":
            inner.write_bytes(text + f"\n--flagfile={inner}\n".encode())
        outer.write_text(f"--num_leaves=3\n--flagfile={inner}\n")
        flagfile = f"--flagfile={inner if way == 'alone' else outer}"
        missing = [f"--codes={folder}/missing", f"--output={folder}/missing"]
        ends_well_and_keeps("export.index", [flagfile, *missing], folder)


@pytest.fixture(scope="module")
def small_index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write_index(folder / "index", CODEBOOKS, CODES, [f"{i}.jpg" for i in range(12)], ENCODER, 2)
    np.save(folder / "queries.npy", np.zeros([2, 6], np.float32))
    (folder / "gone.txt").write_text("3.jpg\n")
    return folder


INDEX_FILES = [
    "ah_codebook.pb", "codebooks.npy", "datapoint_to_token.npy", "group_starts.npy",
    "grouped_rows.npy", "hashed_dataset.npy", "ids.arrow", "manifest.json",
    "scann_assets.pbtxt", "scann_config.pb", "serialized_partitioner.pb",
]  # fmt: skip


def test_every_file_of_an_index_is_tried(small_index):
    assert sorted(path.name for path in (small_index / "index").iterdir()) == INDEX_FILES


@fuzz(max_examples=120)
@given(
    harm=damage.damages(INDEX_FILES + 6 * ["manifest.json"]),
    way=st.sampled_from(["search", "remove", "append", "replace", "gallery"]),
)
def test_indexes(small_index, small_codes, harm, way):
    with tempfile.TemporaryDirectory() as folder:
        index = damage.copy(small_index / "index", f"{folder}/index")
        damage.inflict(index, harm)
        damaged = damage.files_of(index) != damage.files_of(small_index / "index")
        output = f"--output={index}"
        module, arguments = {
            "search": ("search", [f"--index={index}", f"--embeddings={small_index}/queries.npy"]),
            "remove": ("index", [f"--remove={small_index}/gone.txt", output]),
            "append": ("index", [f"--codes={small_codes}", "--append", output]),
            "replace": ("index", [f"--codes={small_codes}", output]),
            "gallery": ("gallery", [f"--index={index}", f"--dataset=folder:{folder}/missing"]),
        }[way]
        worked = ends_well_and_keeps(f"export.{module}", arguments, folder)
        # A manifest may be written in another way and say the same; no other change is let pass.
        assert not (worked and damaged) or way == "replace" or harm[0] == "manifest.json"


@fuzz(max_examples=150)
@given(
    contents=st.one_of(
        st.tuples(
            st.sampled_from(["f2", "f4", "f8", "i4", "c8", "U3", "?"]),
            st.lists(st.sampled_from([0, 1, 2, 6, 7]), max_size=3),
            st.sampled_from([0, 1, -1e19, 1e30, 1e308, float("nan"), float("inf")]),
        ),
        st.tuples(st.just("damage"), damage.damages(["queries.npy"])),
    ),
    k=st.sampled_from([1, 5, 12, 13, 2**63]),
)
def test_embeddings(small_index, contents, k):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "queries.npy")
        if contents[0] == "damage":
            path.write_bytes((small_index / "queries.npy").read_bytes())
            damage.inflict(folder, contents[1])
        else:
            kind, shape, value = contents
            with np.errstate(all="ignore"):
                np.save(path, np.full(shape, value).astype(kind))
        arguments = [f"--index={small_index}/index", f"--embeddings={path}", f"--k={k}"]
        ends_well_and_keeps("export.search", arguments, folder)


def test_nothing_is_unpickled(small_index, tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.save(tmp_path / "trap.npy", np.array([Trap()], object), allow_pickle=True)
    arguments = [f"--index={small_index}/index", f"--embeddings={tmp_path}/trap.npy"]
    assert not ends_well_and_keeps("export.search", arguments, tmp_path)


@pytest.fixture(scope="module")
def small_codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "codes"
    names = [f"é{i}.jpg" for i in range(12)]
    start(folder, CODEBOOKS, ENCODER, 2, {"folder": "photos"}, pack_ids(names))
    for number, rows in enumerate([slice(0, 5), slice(5, 11)]):
        shard = Shard(CODES[rows], pack_ids(names[rows]))
        write_shard(folder, number, 2, shard, [Reject("bad.jpg", "empty file")])
    return folder


CODE_FILES = [
    "codebooks.npy", "codes-00000-of-00002.arrow", "codes-00001-of-00002.arrow", "manifest.json",
]  # fmt: skip


@fuzz(max_examples=120)
@given(harm=damage.damages(CODE_FILES + 4 * ["manifest.json"]))
def test_codes(small_codes, small_index, harm):
    with tempfile.TemporaryDirectory() as folder:
        codes = damage.copy(small_codes, f"{folder}/codes")
        damage.inflict(codes, harm)
        arguments = [f"--codes={codes}", f"--output={folder}/index"]
        if ends_well_and_keeps("export.index", arguments, folder):
            found = [f"--index={folder}/index", f"--embeddings={small_index}/queries.npy"]
            assert assert_ends_well(commands.run("export.search", *found, "--k=1"))


@pytest.fixture(scope="module")
def encoded(encoder, photos, tmp_path_factory):
    """(arguments, folder) of an export.encode that is done."""
    folder = tmp_path_factory.mktemp("fuzz") / "codes"
    (photos / "bad.jpg").write_bytes(b"no image")
    arguments = [f"--saved_model={encoder.path}", f"--input=folder:{photos}"]
    done = commands.run("export.encode", *arguments, f"--output={folder}")
    (photos / "bad.jpg").unlink()
    assert done.status == 0, done
    return arguments, folder


@fuzz(max_examples=15)
@given(
    harm=damage.damages(
        [
            "manifest.json", "rejects-00000-of-00001.jsonl", "inputs.arrow",
            "codes-00000-of-00001.arrow",
        ]
    )
)  # fmt: skip
def test_encoding_goes_on_in_a_damaged_folder(encoded, harm):
    arguments, whole = encoded
    with tempfile.TemporaryDirectory() as folder:
        codes = damage.copy(whole, f"{folder}/codes")
        damage.inflict(codes, harm)
        ends_well_and_keeps("export.encode", [*arguments, f"--output={codes}"], folder)


@fuzz(max_examples=8)
@given(harm=damage.damages(5 * ["manifest.json"] + ["saved_model.pb", "variables/variables.index"]))
def test_encoders(encoder, photos, harm):
    with tempfile.TemporaryDirectory() as folder:
        saved = damage.copy(encoder.path, f"{folder}/saved")
        damage.inflict(saved, harm)
        arguments = [f"--saved_model={saved}", "--dataset=folder:/missing", f"--output={folder}/i"]
        assert not ends_well_and_keeps("export.index", arguments, folder)


@pytest.fixture(scope="module")
def run_dir(workdir, tmp_path_factory):
    """A workdir with figures of two epochs, whose images are no longer there."""
    folder = damage.copy(workdir, tmp_path_factory.mktemp("fuzz") / "run")
    moved = config.dataclasses.replace(read_settings(folder), dataset="folder:/missing")
    (folder / "flags.txt").write_text(config.to_flagfile(moved))
    judged = {
        "held_out": 5, "recall_at_1": 0.5, "perplexity": [1.5, 2], "quantization_error": 0.25,
    }  # fmt: skip
    result = {
        "time": "now", "weights": "best", "step": 7, "protocol": "p", "bits": 4, "distance": "l2",
        "queries": 3, "database": 9, "top_k": 9, "mean_average_precision": 0.5, "chance": 0.25,
        "precision_at_k": {"1": 0.5},
    } | judged  # fmt: skip
    lines = {
        "metrics": [result, result | {"weights": "last"}],
        "epochs": [
            {"epoch": n, "step": n, "loss": 1.5, "learning_rate": 1} | judged for n in (0, 1)
        ],
        "rejects": [{"id": "a.jpg", "reason": "empty file"}],
        "speed": [{"epoch": n, "images_per_second": 9.5} for n in (0, 1)],
    }
    for name, values in lines.items():
        text = "".join(f"{damage.json.dumps(value)}\n" for value in values)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


RUN_FILES = [
    "flags.txt", "rejects.jsonl", "metrics.jsonl", "epochs.jsonl", "speed.jsonl",
    "checkpoints/best/checkpoint", "checkpoints/best/ckpt-7.index",
    "checkpoints/best/ckpt-7.data-00000-of-00001",
    "checkpoints/last/checkpoint", "checkpoints/last/ckpt-7.index",
]  # fmt: skip


@pytest.mark.parametrize("module", ["evaluate", "report"])
@fuzz(max_examples=8)
@given(harm=damage.damages(RUN_FILES))
def test_workdirs(run_dir, module, harm):
    with tempfile.TemporaryDirectory() as folder:
        run = damage.copy(run_dir, f"{folder}/run")
        damage.inflict(run, harm)
        assert not ends_well_and_keeps(f"hqc_tf.{module}", [f"--workdir={run}"], folder)


@fuzz(max_examples=8)
@given(harm=damage.damages([name for name in RUN_FILES if "best" in name]))
def test_no_encoder_of_damaged_weights(run_dir, harm):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "save", lambda *_, **__: None)
        run = damage.copy(run_dir, f"{folder}/run")
        damage.inflict(run, harm)
        arguments = [f"--workdir={run}", f"--output={folder}/serving"]
        ends_well_and_keeps("export.saved_model", arguments, folder)


@fuzz(max_examples=5)
@given(harm=damage.damages(["flags.txt", "rejects.jsonl", "metrics.jsonl", "epochs.jsonl"]))
def test_training_goes_on_in_a_damaged_workdir(run_dir, harm):
    with tempfile.TemporaryDirectory() as folder:
        run = damage.copy(run_dir, f"{folder}/run")
        flags = f"--flagfile={run_dir}/flags.txt"
        damage.inflict(run, harm)
        assert not ends_well_and_keeps("hqc_tf.train", [flags, f"--workdir={run}"], folder)


@fuzz(max_examples=20)
@given(harm=damage.damages(["metrics.jsonl", "epochs.jsonl", "speed.jsonl"]))
def test_lines_that_can_be_read_can_be_shown(run_dir, harm):
    with tempfile.TemporaryDirectory() as folder:
        run = damage.copy(run_dir, f"{folder}/run")
        damage.inflict(run, harm)
        try:
            shown = types.SimpleNamespace(
                runs=gather.read_runs([run]),
                epochs=read_epochs(run),
                speed=read_speed(run),
            )
        except UserError:
            return
        page.result_rows(shown.runs)
        page.map_by_bits(shown.runs)
        page.training_curves(shown)
        [*map(evaluate.describe, read_metrics(run))]
