"""The page of a `gather.Report`: one HTML file that carries all it shows and runs no script."""

import base64
import dataclasses
import pathlib

from hqc_tf import config, files
from hqc_tf.data import catalog, roles
from hqc_tf.errors import UserError, counted, printable
from hqc_tf.report import figures, gather, numbers

_PLACES = 1, 10, 100, 1000
# What is searched without a network, by the name of its baseline.
_RAW = {"pixels": "raw pixels, PCA and OPQ", "features": "raw features, PCA and OPQ"}
_NOT_CURVES = ("epoch", "step", "held_out", "perplexity")
_FOLDER = pathlib.Path(__file__).parent


def render(report: gather.Report) -> str:
    """The page as ASCII text, which is the same in every encoding."""
    shown = _drawings(report) | _tables(report)
    text = _template().render(
        report=report,
        style=(_FOLDER / "style.css").read_text(),
        name=_name(report.settings.dataset),
        protocol=roles.protocol(report.settings),
        others=[run.workdir for run in report.runs if run.workdir != report.workdir],
        key=_key(report),
        colors=len(figures.COLORS),
        near=numbers.NEAR,
        curve_queries=min(report.queries, numbers.CURVE_QUERIES),
        book_queries=min(report.queries, numbers.POINTS),
        pair_queries=numbers.PAIR_QUERIES,
        pair_images=numbers.PAIR_IMAGES,
        codebooks=_size(report.search.codebook_bytes),
        **shown,
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _template():
    try:
        import jinja2
    except ImportError as error:
        raise UserError("a report needs jinja2; pip install 'hqc-tf[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Markup, such as the output of a macro, has been through this already.
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
    )
    environment.filters["counted"] = counted
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html.jinja")


def _name(dataset):
    """The name of a data set as a person has it: of a folder or file its last part."""
    source = catalog.parse(dataset)
    is_path = source.kind in ("folder", "features", "tfrecord")
    return pathlib.Path(source.name).name if is_path else source.name


def _key(report):
    shown = {}
    for one in report.rankings:
        name = f"mAP@{one.scores.top_k}, {one.name}"
        shown[name] = f"{one.scores.mean_average_precision:.4f}"
    if report.rankings:
        for name, raw in _raw(report, report.rankings[0].scores.top_k).items():
            shown[f"the same, {_RAW[name]}"] = f"{raw.mean_average_precision:.4f}"
        shown["the same, by chance"] = f"{report.chance:.4f}"
    if scores := report.without_labels["trained"]:
        shown["recall@1, without labels"] = f"{scores.recall_at_1:.3f}"
    shown["bytes per image"] = f"{report.search.code_bytes:g}"
    shown["one query, all codes"] = f"{report.search.one_query:.3g} ms"
    return shown


def _drawings(report):
    points = map_by_bits(report.runs)
    several = len({bits for found in points.values() for bits, _ in found}) > 1
    ranked, precision = report.rankings, report.book_precision
    curves = [figures.score_curves(ranked), figures.recall_curves(ranked)] if ranked else []
    books = [] if precision is None else [figures.single_books(precision, numbers.NEAR)]
    return {
        "curves": curves,
        "lengths": [figures.code_lengths(points)] if several else [],
        "training": training_curves(report),
        "usage": figures.word_usage(report.word_shares, report.perplexity),
        "books": books,
        "planes": figures.planes(report.plane),
        "pairs": [figures.pair_distances(pairs) for pairs in report.pairs],
    }


def map_by_bits(runs: list) -> dict[str, list[tuple[int, float]]]:
    """mAP of each run by its own distance and R: name of the weights -> [(bits, mAP)]."""
    points = {}
    for run in runs:
        c = run.settings
        for line in run.results:
            scored = line.top_k is not None and line.distance == c.distance
            if scored and line.top_k == min(c.top_k, line.database):
                name = "before training" if line.weights == "untrained" else line.weights
                points.setdefault(name, []).append((c.bits, line.mean_average_precision))
    return points


def training_curves(report: gather.Report) -> list[figures.Drawing]:
    """A small curve of each figure of the epochs."""
    lines = [files.as_json(line) for line in report.epochs]
    for line in lines:
        if "perplexity" in line:
            line["least perplexity of a book"] = min(line["perplexity"])
    curves = {
        name.replace("_", " "): [(line["epoch"] + 1, line[name]) for line in lines if name in line]
        for name in dict.fromkeys(name for line in lines for name in line)
        if name not in _NOT_CURVES
    }
    curves["images per second"] = [(one.epoch + 1, one.images_per_second) for one in report.speed]
    return [
        figures.training_curve(name, *zip(*points, strict=True))
        for name, points in curves.items()
        if points
    ]


def _tables(report):
    books = enumerate(zip(report.perplexity, report.word_shares, strict=True))
    return _scores(report) | {
        "label_free_rows": [
            (
                name,
                f"{found.recall_at_1:.3f}",
                f"{min(found.perplexity):.1f} to {max(found.perplexity):.1f}",
                f"{found.quantization_error:.3g}",
            )
            for name, found in report.without_labels.items()
            if found
        ],
        "result_rows": result_rows(report.runs),
        "word_rows": [
            (book, f"{used:.1f}", int((shares == 0).sum()), f"{shares.max():.1%}")
            for book, (used, shares) in books
        ],
        "cost_rows": _costs(report.search),
        "setting_rows": _settings(report.settings),
    }


def _scores(report):
    if not report.rankings:
        return {}
    top_k = report.rankings[0].scores.top_k
    places = [k for k in _PLACES if k <= top_k]
    rows = []
    for name, scores, _ in report.rankings:
        at_k = [f"{scores.precision_at_k[k - 1]:.3f}" for k in places]
        rows.append((name, f"{scores.mean_average_precision:.4f}", *at_k))
    rows.append(("chance", f"{report.chance:.4f}", *["–"] * len(places)))
    for name, raw in _raw(report, top_k).items():
        at_k = [f"{raw.precision_at_k[str(k)]:.3f}" for k in places]
        rows.insert(2, (_RAW[name], f"{raw.mean_average_precision:.4f}", *at_k))
    head = ["search by", f"mAP@{top_k}", *(f"P@{k}" for k in places)]
    return {"score_head": head, "score_rows": rows}


def _raw(report, top_k):
    """The newest baseline that was recorded for this run's code length and mAP@top_k, by name."""
    own = [line for run in report.runs if run.workdir == report.workdir for line in run.results]
    known = [line.baselines or {} for line in own if line.top_k == top_k]
    found = [{name: each[name]} for each in known for name in _RAW if name in each]
    return found[-1] if found else {}


def result_rows(runs: list) -> list[tuple]:
    """A row for each of the newest results of some `gather.Run`s."""
    return [
        (run.workdir, run.settings.bits, line.weights, line.step, *_recorded(line))
        for run in runs
        for line in run.results
    ]


def _recorded(line):
    labeled, label_free = line.top_k is not None, line.held_out is not None
    return (
        line.distance,
        f"{line.mean_average_precision:.4f} (R = {line.top_k})" if labeled else "–",
        *(_of_baseline(line, *names) for names in (["embedding"], _RAW)),
        f"{line.chance:.4f}" if labeled else "–",
        f"{line.recall_at_1:.3f}" if label_free else "–",
    )


def _of_baseline(line, *names):
    known = line.baselines or {}
    found = [f"{known[name].mean_average_precision:.4f}" for name in names if name in known]
    return found[0] if found else "–"


def _costs(search):
    kept = {
        "codes, as bits": (search.code_bytes, "–"),
        "codes, a byte per book": (search.memory_bytes, f"{search.by_codes:.3g}"),
        "embeddings, float32": (search.embedding_bytes, f"{search.by_embeddings:.3g}"),
    }
    return [
        (name, f"{each:g}", _size(each * search.images), taken)
        for name, (each, taken) in kept.items()
    ]


def _size(count):
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _settings(settings):
    rows = []
    for field in dataclasses.fields(config.Config):
        value = getattr(settings, field.name)
        default = "" if value == field.default else str(field.default)
        rows.append((f"--{field.name}", value, default, field.metadata["text"]))
    return rows
