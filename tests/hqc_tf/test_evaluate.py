import dataclasses
import json
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from hqc_tf import evaluate, metrics, model, retrieval
from hqc_tf.baselines import pixels
from hqc_tf.data import catalog
from hqc_tf.data.screening import Reject
from hqc_tf.errors import UserError
from hqc_tf.training import inputs
from hqc_tf.workdir import (
    Baseline,
    append_metrics,
    load,
    read_metrics,
    read_settings,
    write_files,
    write_rejects,
    write_settings,
)

PIXELS = Baseline(0.5, {"1": 0.75})


@pytest.fixture(scope="module")
def result(workdir):
    return evaluate.evaluate(load(workdir), 7, raw_pixels=PIXELS)


def test_a_result_is_that_of_its_parts(result, workdir, photos):
    trained = load(workdir)
    database = catalog.load_split(f"folder:{photos}", "database")
    query = catalog.load_split(f"folder:{photos}", "query")
    codes = trained.encode_images(database).codes
    embeddings = trained.encode_images(query).embeddings
    found = metrics.evaluate_codes(
        trained.quantizer.codebooks, codes, database.labels, embeddings, query.labels, 10, "l2"
    )
    assert result.mean_average_precision == pytest.approx(found.mean_average_precision)
    assert result.precision_at_k["10"] == pytest.approx(found.precision_at_k[9])
    assert (result.step, result.database, result.queries) == (7, 54, 6)
    found = metrics.evaluate_rankings(
        retrieval.nearest_embeddings_by_chunk(
            embeddings, trained.encode_images(database).embeddings, 10
        ),
        database.labels,
        query.labels,
    )
    assert result.baselines == {
        "pixels": PIXELS,
        "embedding": Baseline(
            pytest.approx(found.mean_average_precision),
            {k: pytest.approx(found.precision_at_k[int(k) - 1]) for k in ("1", "10")},
        ),
    }


def test_raw_pixels_are_scored_under_the_protocol(small_config, fashion_mnist_dir, tmp_path):
    folder = tmp_path / "photos"
    images = catalog.load_images("fashion_mnist/test[:150]", fashion_mnist_dir)
    for row, label in enumerate(images.labels):
        path = folder / f"class{label}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(images.pixels[row]).save(path)
    settings = small_config(dataset=f"folder:{folder}", top_k=20)
    found = evaluate.evaluate_pixels(settings)
    roles = [catalog.load_split(settings.dataset, r) for r in ("train", "database", "query")]
    same = pixels.evaluate(*roles, 8, settings.num_books, settings.num_words, 20)
    assert found.mean_average_precision == same.mean_average_precision > 0.3
    assert found.precision_at_k == {
        "1": same.precision_at_k[0], "10": same.precision_at_k[9]
    }  # fmt: skip


def test_the_last_line_says_where_raw_pixels_are_better(result, capsys):
    found = result.mean_average_precision
    evaluate.show([dataclasses.replace(result, baselines={"pixels": Baseline(found / 2, {})})])
    assert "worse" not in capsys.readouterr().out
    evaluate.show([dataclasses.replace(result, baselines={"pixels": Baseline(0.99, {})})])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"worse than no training: these codes have mAP@10 {found:.4f}")
    assert "OPQ of the raw input 0.9900 at the same 4 bits; train longer" in last


def test_files_that_changed_since_training_are_reported(workdir, photos, tmp_path, capsys):
    write_settings(tmp_path, read_settings(workdir))
    evaluate._report_other_files(tmp_path, None)  # a run of an older version has no list
    now = inputs.list_files(f"folder:{photos}")
    write_files(tmp_path, now)
    evaluate._report_other_files(tmp_path, None)
    assert capsys.readouterr().err == ""
    write_files(tmp_path, now[1:])
    evaluate._report_other_files(tmp_path, None)
    said = f"changed since training: 1 added ({now[0].name}); the figures are of the files as they"
    assert said in capsys.readouterr().err
    # Other images are not the run's that have changed.
    other = shutil.copytree(photos, tmp_path / "photos")
    evaluate._report_other_files(tmp_path, f"folder:{other / now[0].name.partition('/')[0]}")
    assert capsys.readouterr().err == ""
    evaluate._report_other_files(tmp_path, f"folder:{other}")
    assert f"{other}: changed since training: 1 added" in capsys.readouterr().err


def test_figures_are_shown_before_they_are_kept(result, tmp_path, monkeypatch, capsys):
    given = types.SimpleNamespace(workdir=tmp_path / "none", dataset=None, untrained=False)
    monkeypatch.setattr(evaluate.flags, "FLAGS", given)
    monkeypatch.setattr(evaluate, "given_settings", lambda *_: {})
    monkeypatch.setattr(evaluate, "_report_other_files", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluate_workdir", lambda *_: [result])
    with pytest.raises(FileNotFoundError):
        evaluate.main([])
    assert capsys.readouterr().out.startswith("last, step 7: mAP@10 ")


def test_another_data_set_has_rejects_and_results_of_its_own(workdir, photos, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    settings = read_settings(run)
    write_files(run, inputs.list_files(settings.dataset))
    bad = next(iter(catalog.load_images(settings.dataset).ids))
    write_rejects(run, [Reject(bad, "broken")])
    other = shutil.copytree(photos, tmp_path / "other")
    moved = dataclasses.replace(settings, dataset=f"folder:{other}")
    assert evaluate.find_rejects(run, settings) == evaluate.find_rejects(run, moved) == {bad}
    (other / "broken.png").write_bytes(b"")
    assert evaluate.find_rejects(run, moved) == {"broken.png"}
    assert "other: 1 of them left out, the first broken.png" in capsys.readouterr().err
    assert evaluate.changes(run, settings) is None
    assert evaluate.changes(run, moved) == {"dataset": f"folder:{other}"}


def test_features_are_no_images(workdir, features):
    with pytest.raises(UserError, match="features of 12 numbers: the model takes images; give"):
        load(workdir).encode_images(catalog.load_images(features))


def test_results_are_appended_one_line_each(result, tmp_path):
    append_metrics(tmp_path, result)
    append_metrics(tmp_path, dataclasses.replace(result, distance="squared"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["distance"] for line in lines] == ["l2", "squared"]
    assert lines[0]["mean_average_precision"] == result.mean_average_precision
    assert read_metrics(tmp_path)[0] == result


def test_the_line_for_a_person_names_protocol_distance_and_budget(result):
    line = evaluate.describe(result)
    assert "step 7" in line and "mAP@10 " in line and "(l2, 4 bits; unquantized 0." in line
    assert f"; raw pixels with PCA and OPQ 0.5000; chance {result.chance:.4f}), P@1 0." in line
    assert "[folder, 1 in 10 is a query: 6 queries, 54 images]" in line


def test_encoding_does_not_depend_on_the_batch(workdir, photos, monkeypatch):
    trained, images = load(workdir), catalog.load_images(f"folder:{photos}")
    whole = trained.encode_images(images)
    monkeypatch.setattr(model, "ENCODE_BATCH", 7)
    parts = trained.encode_images(images)
    np.testing.assert_allclose(parts.embeddings, whole.embeddings, rtol=1e-4, atol=1e-6)
    assert np.mean(parts.codes == whole.codes) > 0.99


def test_labels_that_come_after_training_change_nothing_that_was_trained_on(
    make_workdir, feature_config, features, tmp_path
):
    labeled = catalog.load_images(features)
    rows = labeled.features[: len(labeled)]
    np.save(tmp_path / "x.npy", rows)
    folder = make_workdir(feature_config(dataset=f"features:{tmp_path}/x.npy", held_out=6))
    before, _ = evaluate.evaluate_workdir(folder)
    lines = [f"{tmp_path}/x.npy:{row},kind {label}" for row, label in enumerate(labeled.labels)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label", *lines]))
    after, best = evaluate.evaluate_workdir(folder, labels=str(tmp_path / "labels.csv"))
    assert before.mean_average_precision is None and after.top_k == 10
    assert (after.queries, after.database) == (6, 54)
    assert after.protocol == "features, 1 in 10 is a query, labels of labels.csv"
    for name in ("held_out", "recall_at_1", "quantization_error"):
        assert getattr(after, name) == getattr(before, name)
    # The same by a file of features that has labels, as queries of all rows.
    names = {"queries": features, "labels": ""}
    with pytest.raises(UserError, match="--dataset=features:.*x.npy: no labels there"):
        evaluate.evaluate_workdir(folder, **names)
    asked, _ = evaluate.evaluate_workdir(folder, dataset=features, queries=features)
    assert (asked.queries, asked.database) == (60, 60)
    assert asked.protocol == f"features, queries of {features}"
