"""Training on a folder leaves out what cannot be decoded, lists it, and is otherwise unchanged."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import kill_test
from hqc_tf import model, train
from hqc_tf.data import catalog, screening
from hqc_tf.errors import UserError
from hqc_tf.report import numbers
from hqc_tf.workdir import load, rejected_ids, write_rejects
from tests.support import odd_images


@pytest.fixture
def odd_photos(photos, tmp_path):
    """(folder, good names, reason by bad name) of images as they come."""
    folder = tmp_path / "odd"
    return folder, *odd_images.write_odd(folder, photos)


def reasons(workdir):
    lines = (workdir / "rejects.jsonl").read_text().splitlines()
    found = {reject["id"]: reject["reason"] for reject in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_training_is_as_if_bad_images_were_not_there(odd_photos, quick_config, tmp_path, capsys):
    """Names that are no text and hold line breaks are among the good ones."""
    folder, good, bad = odd_photos
    clean = tmp_path / "clean"
    clean.mkdir()
    for name in good:
        shutil.copyfile(folder / name, clean / name)
    for images, workdir in ((folder, tmp_path / "run"), (clean, tmp_path / "other")):
        settings = quick_config(dataset=f"folder:{images}", held_out=1)
        results = train.train_and_evaluate(settings, workdir)
        assert [result.held_out for result in results] == [1, 1]
    assert reasons(tmp_path / "run") == bad and reasons(tmp_path / "other") == {}
    said = capsys.readouterr().err
    lines = said.splitlines()
    begin = f"{len(bad)} files cannot be decoded and are left out (broken or cut short: 2, "
    assert lines[0].startswith(begin) and lines[0].endswith(f"): {tmp_path}/run/rejects.jsonl")
    rest = f"training on {len(good) - 1} images (1 held out, {{}} left out): "
    steps = "2 steps an epoch, 4 in all, on 1 CPU"
    assert lines[1:] == [rest.format(count) + steps for count in (len(bad), 0)]
    for kind in ("last", "best"):
        one, two = (
            kill_test.arrays(tmp_path / run / "checkpoints" / kind) for run in ("run", "other")
        )
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, two[name])
    rejected = rejected_ids(tmp_path / "run")
    shown = numbers.make_scene(load(tmp_path / "run"), rejected)
    assert sorted([*shown.images.ids, *shown.queries.ids]) == good


def test_what_was_rejected_is_decided_once(odd_photos, quick_config, tmp_path, monkeypatch):
    folder, good, bad = odd_photos
    settings = quick_config(dataset=f"folder:{folder}", held_out=1)
    write_rejects(tmp_path, [screening.Reject(name, "seen before") for name in bad])
    monkeypatch.setattr(screening, "screen", lambda *_: 1 / 0)
    train.train_and_evaluate(settings, tmp_path)
    assert reasons(tmp_path) == dict.fromkeys(bad, "seen before")


def test_of_2000_mutated_images_every_good_one_is_trained_on(photos, quick_config, tmp_path):
    good, bad = odd_images.write_mutated(tmp_path / "photos", photos, 2000)
    assert 200 < len(good) < 1800
    settings = quick_config(dataset=f"folder:{tmp_path}/photos", batch_size=32, epochs=1, top_k=10)
    last, _ = train.train_and_evaluate(settings, tmp_path / "run")
    found = reasons(tmp_path / "run")
    assert set(found) == bad and all(found.values())
    assert last.queries + last.database == len(good)
    assert last.step == (last.database - last.held_out) // 32


def test_a_bad_image_stops_it_if_that_is_asked(odd_photos, tiny_config, tmp_path):
    settings = tiny_config(dataset=f"folder:{odd_photos[0]}", on_bad_image="stop")
    with pytest.raises(UserError, match="odd/corrupt.png: broken or cut short; fix or remove it"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_but_bad_images(tiny_config, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos" / name).write_text("<html>404</html>")
    settings = tiny_config(dataset=f"folder:{tmp_path}/photos")
    with pytest.raises(UserError, match=r"no image in it or below \(2 files that cannot be dec"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_breaks_in_the_middle_is_named(photos, tiny_config, tmp_path, monkeypatch):
    """Of a list of photos too, which is not screened."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    broken = sorted(folder.rglob("*.png"))[4]
    screened = screening.find_rejects

    def then_break(*arguments):
        rejects = screened(*arguments)
        broken.write_bytes(broken.read_bytes()[:-30])
        return rejects

    monkeypatch.setattr(screening, "find_rejects", then_break)
    settings = tiny_config(dataset=f"folder:{folder}", held_out=0)
    with pytest.raises(UserError, match=f"{broken.name}: broken or cut short; fix it and run"):
        train.train_and_evaluate(settings, tmp_path / "run")
    images = catalog.load_split(settings.dataset, "train")
    trained = model.build_model(settings)
    with pytest.raises(UserError, match=f"{broken.name}: broken or cut short; fix it and run"):
        trained.encode_images(images)


def test_an_error_of_another_kind_passes(photos):
    images = catalog.load_images(f"folder:{photos}")
    with pytest.raises(ZeroDivisionError), screening.naming_a_bad_file(images):
        raise ZeroDivisionError
