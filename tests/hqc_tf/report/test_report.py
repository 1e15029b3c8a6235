"""Reports of real images, with hostile names and without labels; a browser looks at them."""

import dataclasses
import html.parser
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from hqc_tf import config, evaluate, files, label_free, metrics, model
from hqc_tf.data.images import Images
from hqc_tf.errors import UserError, printable
from hqc_tf.report import __main__ as command
from hqc_tf.report import figures, gallery, gather, numbers, page, write_report
from hqc_tf.workdir import Baseline, append_metrics, load, read_metrics, read_settings
from tests.support import browser

HOSTILE = ['"><script>alert(1)', "a&b'$x_\\n$\n<b", "é \u202e目"]


class Tables(html.parser.HTMLParser):
    """Reads a page: its tables by caption, its text, and what its attributes refer to."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self._cell, self._row = {}, [], None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [named[n] for n in ("src", "href", "xlink:href", "action") if n in named]
        if tag == "tr":
            self._row = []
        if tag in ("caption", "th", "td"):
            self._cell = ""

    def handle_data(self, words):
        if self._cell is not None:
            self._cell += words

    def handle_endtag(self, tag):
        if tag == "caption":
            self._rows = self.tables.setdefault(self._cell, [])
        elif tag in ("th", "td"):
            self._row.append(self._cell)
        elif tag == "tr":
            self._rows.append(self._row)
        if tag in ("caption", "th", "td"):
            self._cell = None


def table(found, words):
    """The rows of the table whose caption has these words."""
    (rows,) = [rows for caption, rows in found.tables.items() if words in caption]
    return rows


def move_to(workdir, folder, **changes):
    """A copy of a workdir with some settings changed."""
    shutil.copytree(workdir, folder)
    settings = dataclasses.replace(read_settings(folder), **changes)
    (folder / "flags.txt").write_text(config.to_flagfile(settings))
    return folder


def epoch(number):
    return {
        "epoch": number,
        "step": 7 * (number + 1),
        "loss": 4.0 - number,
        "consistency": 0.5,
        "learning_rate": 0.001,
        "held_out": 5,
        "recall_at_1": 0.25 * (number + 1),
        "perplexity": [3.5, 2.0 + number],
        "quantization_error": 0.125,
    }


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def labelled(workdir, photos, tmp_path_factory):
    """A workdir whose images have hostile labels, with epochs, speeds and results."""
    folder = tmp_path_factory.mktemp("labelled")
    shutil.copytree(photos, folder / "photos")
    classes = sorted((folder / "photos").iterdir())
    for path, name in zip(classes, HOSTILE, strict=False):
        path.rename(path.with_name(name))
    moved = move_to(workdir, folder / "run <b>&\"'", dataset=f"folder:{folder / 'photos'}")
    write_lines(moved / "epochs.jsonl", [epoch(0), epoch(1)])
    write_lines(moved / "speed.jsonl", [{"epoch": 0, "images_per_second": 123.0}])
    for result in evaluate.evaluate_workdir(moved):
        append_metrics(moved, result)
    return moved


@pytest.fixture(scope="module")
def report(labelled, workdir, tmp_path_factory):
    """What `labelled` and a run of 6 bits on the same images have to say."""
    other = move_to(labelled, tmp_path_factory.mktemp("other") / "run", num_books=3)
    lines = [
        files.as_json(line) | {"bits": 6, "mean_average_precision": 0.75}
        for line in read_metrics(other)
    ]
    write_lines(other / "metrics.jsonl", lines)
    return gather.gather([str(labelled), str(other)])


@pytest.fixture(scope="module")
def text(report):
    return page.render(report)


@pytest.fixture(scope="module")
def found(text):
    return Tables(text)


@pytest.fixture(scope="module")
def seen(labelled):
    """What the report rests on: the best weights, and what they make of the images."""
    return numbers.make_scene(load(labelled))


@pytest.fixture(scope="module")
def unlabelled(workdir, photos, tmp_path_factory):
    """A workdir whose images have no labels, and one of the names is hostile."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "photos").mkdir()
    for path in photos.rglob("*.png"):
        name = "<img src=x>.png" if path.name == "7.png" else path.name
        shutil.copy(path, folder / "photos" / name)
    return move_to(workdir, folder / "run", dataset=f"folder:{folder / 'photos'}")


@pytest.fixture(scope="module")
def unlabelled_report(unlabelled):
    return gather.gather([str(unlabelled)], untrained=False)


def test_the_scores_are_those_of_evaluate(labelled, report, found):
    head, codes, embeddings, before, chance = table(found, "Means over 6 queries")
    result = read_metrics(labelled)[1]
    assert head == ["search by", "mAP@10", "P@1", "P@10"]
    at = result.precision_at_k
    expected = [f"{result.mean_average_precision:.4f}", f"{at['1']:.3f}", f"{at['10']:.3f}"]
    assert codes == ["codes", *expected]
    assert chance == ["chance", f"{result.chance:.4f}", "–", "–"]
    untrained = evaluate.evaluate(model.build_model(report.settings), 0, "untrained")
    assert before[:2] == ["codes before training", f"{untrained.mean_average_precision:.4f}"]
    (_, trained, at_first) = table(found, "Without labels, by 5 images")
    for row, line in ((trained, result), (at_first, untrained)):
        assert row[1] == f"{line.recall_at_1:.3f}"
        assert row[3] == f"{line.quantization_error:.3g}"


def test_raw_pixels_stand_beside_the_codes(report):
    pixels = Baseline(0.4321, {"1": 0.5, "10": 0.25})
    runs = [
        run._replace(
            results=[dataclasses.replace(one, baselines={"pixels": pixels}) for one in run.results]
        )
        for run in report.runs
    ]
    found = Tables(page.render(report._replace(runs=runs)))
    row = ["raw pixels, PCA and OPQ", "0.4321", "0.500", "0.250"]
    assert table(found, "Means over 6 queries")[3] == row
    assert {row[7] for row in table(found, "The newest results in metrics.jsonl")[1:]} == {"0.4321"}


def test_labels_without_names_are_numbers():
    images = Images.of_features(np.ones([3, 2], np.float32), ["a", "b", "c"], np.array([2, 0, 2]))
    assert gather._label_names(images) == ["0", "2"]
    far = dataclasses.replace(images, labels=np.array([-1, 10**9, -1]))
    assert gather._label_names(far) == ["-1", "1000000000"]
    assert gather._label_names(dataclasses.replace(images, labels=None)) is None


def test_embeddings_are_ranked_by_euclidean_distance(seen, found):
    images, queried = seen.database.embeddings, seen.query.embeddings
    order = np.argsort(np.linalg.norm(queried[:, None] - images, axis=-1), axis=1)[:, :10]
    scores = metrics.average_precision(seen.images.labels[order] == seen.queries.labels[:, None])
    assert table(found, "Means over")[2][:2] == ["embeddings", f"{scores.mean():.4f}"]


def test_every_result_of_every_run_stands_by_its_bits(labelled, text, found):
    _, *rows = table(found, "The newest results in metrics.jsonl")
    lines = {line.weights: line for line in read_metrics(labelled)}
    assert [row[1:4] for row in rows] == [
        ["4", "last", "7"], ["4", "best", "7"], ["6", "last", "7"], ["6", "best", "7"]
    ]  # fmt: skip
    assert rows[1][5] == f"{lines['best'].mean_average_precision:.4f} (R = 10)"
    assert [row[5] for row in rows[2:]] == ["0.7500 (R = 10)"] * 2
    at_4 = f"{lines['best'].mean_average_precision:.4f} at 4 bits"
    assert f"best: {at_4}, 0.7500 at 6 bits" in text


def test_the_words_are_counted_over_the_database(seen, found):
    codes = seen.database.codes
    _, *rows = table(found, "Use of the 4 words of each book")
    perplexity = label_free.perplexity(codes, 4)
    assert [row[:2] for row in rows] == [[str(m), f"{perplexity[m]:.1f}"] for m in range(2)]
    most = [np.bincount(codes[:, m]).max() / len(codes) for m in range(2)]
    assert [row[3] for row in rows] == [f"{share:.1%}" for share in most]


def test_the_queries_shown_are_the_best_the_median_and_the_worst(report):
    scores = np.sort(report.rankings[0].scores.average_precision)
    shown = [(one.kind, one.average_precision) for one in report.gallery]
    expected = zip(
        ["Best"] * 2 + ["Median"] * 2 + ["Worst"] * 2, scores[[5, 4, 2, 3, 0, 1]], strict=True
    )
    assert shown == list(expected)
    for one in report.gallery:
        assert [len(one.found), len({x.name for x in one.found})] == [10, 10]
        distances = [x.distance for x in one.found]
        assert distances == sorted(distances)
        assert [x.relevant for x in one.found] == [x.label == one.query.label for x in one.found]
    assert [len(one.by_book) for one in report.gallery] == [2, 0] * 3


def test_pictures_have_names_along_with_labels(report, text):
    assert "<title>Image search in photos, 4 bits an image</title>" in text
    for one in report.gallery:
        for shown in (one.query, *one.found):
            name = shown.name.rpartition("/")[2]
            assert f'<br><span class="name">{name}</span>' in text
    assert "54 images searched with 6 queries (folder, 1 in 10 is a query)" in text


def test_the_page_says_what_an_average_precision_looks_at(text):
    assert "the right ones of the first\n10 alone" in text


def test_a_book_alone_compares_its_own_part(seen, report):
    one = report.gallery[0]
    names = [[printable(name) for name in x.ids] for x in (seen.images, seen.queries)]
    queried = seen.query.embeddings[names[1].index(one.query.name)]
    for book, found in enumerate(one.by_book):
        part = slice(3 * book, 3 * book + 3)
        distances = np.linalg.norm(seen.database.embeddings[:, part] - queried[part], axis=1)
        assert [x.name for x in found] == [names[0][i] for i in np.argsort(distances)[:8]]


def test_the_curves_are_those_of_the_epochs(text):
    for words in (
        "Loss: From 4 after epoch 1 to 3 after epoch 2",
        "Recall at 1: From 0.25 after epoch 1 to 0.5 after epoch 2",
        "Least perplexity of a book: From 2 after epoch 1 to 3 after epoch 2",
        "Images per second: 123 after epoch 1",
    ):
        assert f'aria-label="{words}"' in text


def test_a_plane_keeps_distances_and_says_what_it_holds():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=[40, 2]) * [3, 1]
    turned = flat @ np.linalg.qr(rng.normal(size=[5, 5]))[0][:2]
    plane = numbers.project(turned, turned + 0, None)
    between = np.linalg.norm(flat[:, None] - flat, axis=-1)
    shown = np.linalg.norm(plane.embeddings[:, None] - plane.embeddings, axis=-1)
    np.testing.assert_allclose(shown, between, atol=1e-9)
    np.testing.assert_allclose(plane.explained.sum(), 1)
    assert plane.explained[0] > 0.7
    np.testing.assert_array_equal(plane.embeddings, plane.codewords)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1)])
def test_a_plane_of_one_line_has_a_second_axis_of_zeros(shape):
    points = np.arange(np.prod(shape), dtype=float).reshape(shape)
    plane = numbers.project(points, points, None)
    assert plane.embeddings.shape == (shape[0], 2) and plane.explained.shape == (2,)
    np.testing.assert_allclose(plane.embeddings[:, 1], 0, atol=1e-12)


def test_pairs_equal_a_double_loop():
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 6, [5, 8]).astype(float)
    same = rng.random([5, 8]) < 0.4
    pairs = numbers.count_pairs("any", distances, same)
    nearer = [(a < b) + 0.5 * (a == b) for a in distances[same] for b in distances[~same]]
    assert pairs.separation == pytest.approx(np.mean(nearer))
    assert pairs.means == pytest.approx((distances[same].mean(), distances[~same].mean()))
    np.testing.assert_allclose([pairs.within.sum(), pairs.between.sum()], 1)


@pytest.mark.parametrize(
    ("count", "rows"),
    [(9, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]), (5, [[0], [2], [4]]), (1, [[0], [0], [0]])],
)
def test_the_first_the_middle_and_the_last_are_chosen(count, rows):
    assert [part.tolist() for part in gallery.choose(np.arange(count), 3)] == rows


def with_multi_hot(images):
    labels = np.eye(11, dtype=np.uint8)[images.labels]
    return dataclasses.replace(images, labels=labels, label_names=None)


def test_images_of_several_labels_are_compared_alike(seen, report):
    images, queries = map(with_multi_hot, (seen.images, seen.queries))
    several = seen._replace(images=images, queries=queries)
    for one, two in zip(numbers.compare_pairs(several), report.pairs, strict=True):
        assert one.separation == two.separation
    np.testing.assert_array_equal(numbers.book_precision(several), report.book_precision)
    ranking = numbers.rank("codes", several.by_codes, several)
    np.testing.assert_array_equal(ranking.curve.recall, report.rankings[0].curve.recall)
    shown = gallery.by_precision(several, ranking.scores.average_precision)
    assert [[x.relevant for x in one.found] for one in shown] == [
        [x.relevant for x in one.found] for one in report.gallery
    ]
    assert numbers.plane(several).labels is None


def test_the_search_counts_what_it_keeps(report):
    found = report.search
    assert (found.images, found.batch) == (54, 6)
    assert (found.code_bytes, found.memory_bytes, found.embedding_bytes) == (0.5, 2, 24)
    assert found.codebook_bytes == 4 * 2 * 4 * 3
    assert 1 <= found.distinct_codes <= 16
    assert min(found.one_query, found.by_codes, found.by_embeddings) > 0


def test_without_labels_the_page_says_what_it_can(unlabelled, unlabelled_report, monkeypatch):
    queried = []
    monkeypatch.setattr(
        gather, "gather", lambda *told, **data: queried.append((*told, data)) or unlabelled_report
    )
    path = command.write_report([str(unlabelled)], data_dir="d", untrained=False)
    assert (
        queried == [([str(unlabelled)], False, {"data_dir": "d"})]
        and path == unlabelled / "report.html"
    )
    text = path.read_text()
    assert "The images have no labels" in text and "mAP@10" not in text
    judged = evaluate.label_free_scores(load(unlabelled))
    shown = table(Tables(text), "Without labels, by 6 images")[1]
    assert shown[:2] == ["trained", f"{judged.recall_at_1:.3f}"]
    assert all(f"<h3>{kind}</h3>" in text for kind in gallery.KINDS_BY_DISTANCE)
    assert "<img src=x>" not in text and "&lt;img src=x&gt;.png" in text


def test_without_labels_held_out_images_ask_the_others(unlabelled_report):
    shown = unlabelled_report
    assert (shown.queries, shown.search.images) == (6, 54)
    for one in shown.gallery:
        assert one.query.name not in {x.name for x in one.found}
    nearest = [one.found[0].distance for one in shown.gallery]
    assert nearest == sorted(nearest)


def test_the_same_run_makes_the_same_page(unlabelled, unlabelled_report):
    again = gather.gather([str(unlabelled)], untrained=False)
    same_times = again._replace(search=unlabelled_report.search)
    assert page.render(same_times) == page.render(unlabelled_report)


def test_nothing_leaves_the_page(text, found):
    assert text.isascii()
    assert {link.partition(":")[0] for link in found.links if not link.startswith("#")} == {"data"}
    assert not re.search(r"https?:|url\((?!#)|@import", text)


def test_names_stay_text_whatever_they_hold(report):
    hostile = "</style><script>alert(1)</script>\"'\n\t\udcff\x00&amp;"
    shown = report.gallery[0]._replace(
        query=report.gallery[0].query._replace(name=hostile, label=hostile)
    )
    text = page.render(report._replace(gallery=[shown], label_names=[hostile] * 12))
    assert "<script" not in text and "\udcff" not in text and "\x00" not in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;\n\t\udcff\x00&amp;amp;" in text
    assert "gray: the other 2 labels" in text


def test_a_report_without_jinja2_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"needs jinja2; pip install 'hqc-tf\[report\]'"):
        page.render(report)


def test_what_a_report_needs_is_said_before_the_work(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "gather", lambda *_, **__: pytest.fail("was gathered"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="--output=.*report.html: its folder cannot be written"):
        write_report([str(labelled)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib; pip install 'hqc-tf\[report\]'"):
        write_report([str(labelled)])


def test_figures_take_their_colours_from_the_page(report):
    svg = figures.word_usage(report.word_shares, report.perplexity).svg
    assert "var(--color-0)" in svg and "var(--ink)" in svg
    assert not re.search("#[0-9a-f]{6}\\b", svg)


@pytest.mark.parametrize("name", ["report", "unlabelled_report"])
def test_a_browser_finds_nothing_wrong(name, request, tmp_path):
    text = page.render(request.getfixturevalue(name))
    looks, console = browser.look_at(text, tmp_path)
    assert [look["width"] for look in looks] == [400, 1400]
    for look in looks:
        assert look["images"] > 60
        assert look["wrong"] == []
    assert console == []


def test_the_browser_sees_what_is_wrong(text, tmp_path):
    broken = (
        '<p style="width: 3000px">.</p><h5>5</h5><script>1</script><a href="#gone">gone</a>'
        '<img src="data:image/png;base64,AAAA" alt="x"><img src="data:," alt="">'
        '<div id="main" style="overflow-x: auto; width: 9px"><pre>longer than that</pre></div>'
    )
    (look, _), console = browser.look_at(text.replace("</main>", f"{broken}</main>"), tmp_path)
    seen = " ".join(look["wrong"])
    for words in (
        "scrolls sideways", "not loaded", "without words", "leads nowhere", "would run",
        "second of its id",
    ):  # fmt: skip
        assert words in seen
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_workdir_without_a_run_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: no flags.txt there; train into it first"):
        command.write_report([str(tmp_path / name)])


def test_runs_on_other_data_are_refused(labelled, workdir):
    with pytest.raises(UserError, match="trained on folder:.*give runs of one data set"):
        gather.read_runs([str(labelled), str(workdir)])


@pytest.mark.parametrize("output", ["", "missing/report.html"])
def test_an_output_that_cannot_be_is_refused_before_the_work(labelled, tmp_path, output):
    with pytest.raises(UserError, match="must be a file in a folder that exists"):
        command.write_report([str(labelled)], tmp_path / output)
