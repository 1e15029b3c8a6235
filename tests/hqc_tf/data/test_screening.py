"""Training on a folder leaves out what cannot be decoded, lists it, and is otherwise unchanged."""

import json
import shutil

import pytest

from hqc_tf import model, train
from hqc_tf.data import catalog, screening
from hqc_tf.data.batches import plain_batches
from hqc_tf.data.images import hold_out
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


@pytest.mark.long
def test_training_is_as_if_bad_images_were_not_there(
    odd_photos, quick_config, tmp_path, monkeypatch, capsys
):
    """Names that are no text and hold line breaks are among the good ones."""
    folder, good, bad = odd_photos
    clean = tmp_path / "clean"
    clean.mkdir()
    for name in good:
        shutil.copyfile(folder / name, clean / name)
    fit, trained_on = train._fit, []
    monkeypatch.setattr(train, "_fit", lambda *args: trained_on.append(args[1].ids) or fit(*args))
    settings = quick_config(dataset=f"folder:{folder}", held_out=1, epochs=1)
    results = train.train_and_evaluate(settings, tmp_path / "run")
    assert [result.held_out for result in results] == [1, 1]
    assert reasons(tmp_path / "run") == bad
    said = capsys.readouterr().err
    lines = said.splitlines()
    begin = f"{len(bad)} files cannot be decoded and are left out (broken or cut short: 2, "
    assert lines[0].startswith(begin) and lines[0].endswith(f"): {tmp_path}/run/rejects.jsonl")
    rest = f"training on {len(good) - 1} images (1 held out, {len(bad)} left out): "
    assert lines[1:] == [rest + "2 steps an epoch, 2 in all, on 1 CPU"]
    # All that follows is a function of these images in their order.
    assert trained_on == [hold_out(catalog.load_split(f"folder:{clean}", "train"), 1)[0].ids]
    assert len(trained_on[0]) == len(good) - 1
    rejected = rejected_ids(tmp_path / "run")
    shown = numbers.make_scene(load(tmp_path / "run"), rejected)
    assert sorted([*shown.images.ids, *shown.queries.ids]) == good


def test_what_was_rejected_is_decided_once(odd_photos, quick_config, tmp_path, monkeypatch):
    folder, good, bad = odd_photos
    settings = quick_config(dataset=f"folder:{folder}", held_out=0)
    write_rejects(tmp_path, [screening.Reject(name, "seen before") for name in bad])
    monkeypatch.setattr(screening, "screen", lambda *_: 1 / 0)
    monkeypatch.setattr(train, "_fit", lambda _, images, *__: taken.extend(images.ids))
    monkeypatch.setattr(train, "_evaluate", lambda *_: [])
    taken = []
    train.train_and_evaluate(settings, tmp_path)
    assert sorted(taken) == good
    assert reasons(tmp_path) == dict.fromkeys(bad, "seen before")


@pytest.mark.long
def test_of_500_mutated_images_every_good_one_is_read(photos, tmp_path):
    """The views of a step are cut from what is decoded in the same way."""
    good, bad = odd_images.write_mutated(tmp_path / "photos", photos, 500)
    assert 50 < len(good) < 450
    dataset = f"folder:{tmp_path}/photos"
    found = screening.find_rejects(dataset, "skip")
    assert {reject.id for reject in found} == bad and all(reject.reason for reject in found)
    images = [catalog.load_split(dataset, role, "", frozenset(bad)) for role in ("train", "query")]
    assert sorted(images[0].ids + images[1].ids) == good
    with screening.naming_a_bad_file(images[0]):
        assert sum(len(batch) for batch in plain_batches(images[0], 8, 8, 32)) == len(images[0])


def test_a_bad_image_stops_it_if_that_is_asked(odd_photos, tiny_config, tmp_path):
    settings = tiny_config(dataset=f"folder:{odd_photos[0]}", on_bad_image="stop")
    with pytest.raises(UserError, match="odd/corrupt.png: broken or cut short; fix or remove it"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_but_bad_images(tiny_config, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png", "c.gif", "d.bmp"):
        (tmp_path / "photos" / name).write_text("<html>404</html>")
    settings = tiny_config(dataset=f"folder:{tmp_path}/photos")
    with pytest.raises(UserError, match=r"no image in it or below \(4 files that cannot be dec"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
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
