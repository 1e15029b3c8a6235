"""The sections of the page that hold numbers: `contents.Report` -> list of HTML parts each."""

import dataclasses

from hqc_tf import config, files
from hqc_tf.report import figures, numbers
from hqc_tf.report.markup import drawings, element, paragraph, table

_PLACES = 1, 10, 100, 1000
_NOT_CURVES = ("epoch", "step", "held_out", "perplexity")


def retrieval(report):
    """mAP, P@k, precision and recall; or what can be said without labels alone."""
    if not report.rankings:
        said = "The images have no labels, so that no result can be called right or wrong."
        return [paragraph(said), _label_free(report)]
    return [
        paragraph(
            "An image is right when it has a label of the query. Codes are what is stored; the "
            "embeddings, which they stand for, are compared by Euclidean distance with nothing "
            "quantized; before training the network is as it was drawn from the seed."
        ),
        _scores(report),
        drawings([figures.score_curves(report.rankings), figures.recall_curves(report.rankings)]),
        paragraph(
            "Precision and recall after each place of the whole ranking are means over "
            f"{min(report.queries, numbers.CURVE_QUERIES)} queries."
        ),
        _label_free(report),
    ]


def _scores(report):
    top_k = report.rankings[0].scores.top_k
    places = [k for k in _PLACES if k <= top_k]
    rows = []
    for name, scores, _ in report.rankings:
        at_k = [f"{scores.precision_at_k[k - 1]:.3f}" for k in places]
        rows.append((name, f"{scores.mean_average_precision:.4f}", *at_k))
    rows.append(("chance", f"{report.chance:.4f}", *["–"] * len(places)))
    head = ["search by", f"mAP@{top_k}", *(f"P@{k}" for k in places)]
    return table(f"Means over {report.queries} queries", head, rows)


def _label_free(report):
    rows = [
        (
            name,
            f"{found.recall_at_1:.3f}",
            f"{min(found.perplexity):.1f} to {max(found.perplexity):.1f}",
            f"{found.quantization_error:.3g}",
        )
        for name, found in report.without_labels.items()
        if found
    ]
    if not rows:
        return paragraph("No images were kept from training to judge by (--held_out=0).")
    count = report.without_labels["trained"].held_out
    head = ["model", "recall@1", "words of a book in use", "quantization error"]
    caption = (
        f"Without labels, by {count} images kept from training. Recall@1: how often a changed view "
        "finds its own image first"
    )
    return table(caption, head, rows)


def lengths(report):
    """What metrics.jsonl says of each run, by bits."""
    rows = [
        (run.workdir, run.settings.bits, line.weights, line.step, *_recorded(line))
        for run in report.runs
        for line in run.results
    ]
    if not rows:
        return [paragraph("metrics.jsonl has no result yet; hqc_tf.evaluate adds one.")]
    head = ["workdir", "bits", "weights", "step", "distance", "mAP", "chance", "recall@1"]
    parts = [table("The newest results in metrics.jsonl", head, rows)]
    points = _points(report.runs)
    if len({bits for found in points.values() for bits, _ in found}) > 1:
        parts.append(drawings([figures.code_lengths(points)]))
    return parts


def _recorded(line):
    scored, judged = line.top_k is not None, line.held_out is not None
    return (
        line.distance,
        f"{line.mean_average_precision:.4f} (R = {line.top_k})" if scored else "–",
        f"{line.chance:.4f}" if scored else "–",
        f"{line.recall_at_1:.3f}" if judged else "–",
    )


def _points(runs):
    """mAP as each run is judged by its own settings: name of the weights -> [(bits, mAP)]."""
    points = {}
    for bits, c, line in (
        (run.settings.bits, run.settings, x) for run in runs for x in run.results
    ):
        scored = line.top_k is not None and line.distance == c.distance
        if scored and line.top_k == min(c.top_k, line.database):
            name = "before training" if line.weights == "untrained" else line.weights
            points.setdefault(name, []).append((bits, line.mean_average_precision))
    return points


def training(report):
    """A small curve of each figure of the epochs."""
    if not report.epochs:
        return [paragraph("No epoch has ended: epochs.jsonl is missing.")]
    lines = [files.as_json(line) | _least_perplexity(line) for line in report.epochs]
    curves = {
        name.replace("_", " "): [(line["epoch"] + 1, line[name]) for line in lines if name in line]
        for name in dict.fromkeys(name for line in lines for name in line)
        if name not in _NOT_CURVES
    }
    if report.speed:
        speeds = [(line.epoch + 1, line.images_per_second) for line in report.speed]
        curves["images per second"] = speeds
    drawn = [
        figures.training_curve(name, *zip(*points, strict=True)) for name, points in curves.items()
    ]
    said = "After each epoch: the loss, its terms before they are weighted, and what was judged."
    return [paragraph(said), drawings(drawn, "figures small")]


def _least_perplexity(line):
    words = line.perplexity
    return {"least perplexity of a book": min(words)} if words else {}


def words(report):
    """How often each codeword is taken."""
    rows = [
        (book, f"{used:.1f}", int((shares == 0).sum()), f"{shares.max():.1%}")
        for book, (used, shares) in enumerate(
            zip(report.perplexity, report.word_shares, strict=True)
        )
    ]
    head = ["book", "perplexity", "words never taken", "share of the most taken"]
    return [
        paragraph(
            "The stronger the colour of a word, the more of the searched images have it in their "
            "code. Perplexity says how many words a book has in use."
        ),
        drawings([figures.word_usage(report.word_shares, report.perplexity)]),
        table(f"Use of the {report.settings.num_words} words of each book", head, rows),
    ]


def distances(report):
    """How far apart images of the same and of other labels are."""
    if not report.pairs:
        return [paragraph("This needs images with a label in common, and images without.")]
    return [
        paragraph(
            "The further left the pairs with a label in common lie of the others, the better a "
            f"search by this distance. At most {numbers.PAIR_QUERIES} queries and "
            f"{numbers.PAIR_IMAGES} images."
        ),
        drawings([figures.pair_distances(pairs) for pairs in report.pairs]),
    ]


def search(report):
    """What the search costs."""
    s = report.search
    kept = {
        "codes, as bits": (s.code_bytes, "–"),
        "codes, a byte a book": (s.memory_bytes, f"{s.by_codes:.3g}"),
        "embeddings, float32": (s.embedding_bytes, f"{s.by_embeddings:.3g}"),
    }
    rows = [
        (name, f"{each:g}", _size(each * s.images), taken) for name, (each, taken) in kept.items()
    ]
    head = ["kept of each image", "bytes", f"all {s.images} images", f"ms a query, {s.batch} asked"]
    return [
        paragraph(
            "Measured on this run's codes while this page was made: the exact search, which sees "
            "every code, by tables of a query's distances to all words. A query alone takes "
            f"{s.one_query:.3g} ms. Times are medians for the {numbers.NEAR} nearest. (ScaNN "
            "searches the same codes in an index of export.index; benchmarks.search measures it.)"
        ),
        table("Size and time", head, rows),
        paragraph(
            f"{s.distinct_codes} different codes stand for the {s.images} images. The codebooks "
            f"take {_size(s.codebook_bytes)} once."
        ),
    ]


def _size(count):
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def settings(report):
    """Every setting of the run."""
    rows = []
    for field in dataclasses.fields(config.Config):
        value = getattr(report.settings, field.name)
        default = "" if value == field.default else str(field.default)
        name = element("code", f"--{field.name}")
        rows.append((name, element("code", str(value)), default, field.metadata["text"]))
    head = ["setting", "value", "default, if another", "meaning"]
    return [table(f"Settings of {report.workdir}", head, rows)]
