import dataclasses
import json

import numpy as np
import pytest

from hqc_tf import evaluate, metrics, model
from hqc_tf.workdir import append_metrics, load, read_metrics


def test_a_result_is_that_of_its_parts(workdir, photos):
    from hqc_tf.data import catalog

    trained = load(workdir)
    result = evaluate.evaluate(trained, 7)
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


def test_results_are_appended_one_line_each(workdir, tmp_path):
    result = evaluate.evaluate(load(workdir), 7)
    append_metrics(tmp_path, result)
    append_metrics(tmp_path, dataclasses.replace(result, distance="squared"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["distance"] for line in lines] == ["l2", "squared"]
    assert lines[0]["mean_average_precision"] == result.mean_average_precision
    assert read_metrics(tmp_path)[0] == result


def test_the_line_for_a_person_names_protocol_distance_and_budget(workdir):
    line = evaluate.describe(evaluate.evaluate(load(workdir), 7))
    assert "step 7" in line and "mAP@10 " in line and "(l2, 4 bits; chance " in line
    assert "[folder, 1 in 10 is a query: 6 queries, 54 images]" in line


def test_encoding_does_not_depend_on_the_batch(workdir, photos, monkeypatch):
    from hqc_tf.data import catalog

    trained, images = load(workdir), catalog.load_images(f"folder:{photos}")
    whole = trained.encode_images(images)
    monkeypatch.setattr(model, "ENCODE_BATCH", 7)
    parts = trained.encode_images(images)
    np.testing.assert_allclose(parts.embeddings, whole.embeddings, rtol=1e-4, atol=1e-6)
    assert np.mean(parts.codes == whole.codes) > 0.99
