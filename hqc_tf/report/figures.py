"""The figures of a report: SVG in the colors of the page, each with its finding in words.

No name that a person chose comes into a figure: Matplotlib would read "$" in it as a formula.
"""

import io
import re
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hqc_tf.report import numbers

# In inches; the page shows a figure at 400 to 500 pixels, so that its words stay legible.
SIZE, SMALL, SQUARE = (4.6, 3.1), (3.1, 2.1), (4.6, 4.2)
# What Matplotlib draws in, and the variable of the page's style that takes its place in the end.
_INK, _FAINT, _MUTED = "#010203", "#010204", "#010205"
COLORS = [f"#0103{number:02x}" for number in range(10)]
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _MUTED: "--muted"} | {
    color: f"--color-{number}" for number, color in enumerate(COLORS)
}
_DASHES = "-", "--", "-.", ":"
_STYLE = {
    "svg.fonttype": "none",
    "font.sans-serif": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


class Drawing(NamedTuple):
    """A figure of the page."""

    svg: str  # its element, without any words for those who do not see it
    title: str  # what is drawn
    finding: str  # what it shows, in words and numbers


def score_curves(rankings: list[numbers.Ranking]) -> Drawing:
    """P@k over k, of `numbers.Ranking`s."""
    top_k = rankings[0].scores.top_k
    places = np.arange(1, top_k + 1)
    lines = {one.name: (places, one.scores.precision_at_k) for one in rankings}
    findings = [
        f"P@{k}: " + ", ".join(f"{name} {values[k - 1]:.3f}" for name, (_, values) in lines.items())
        for k in sorted({1, min(100, top_k), top_k})
    ]
    axes = {"xlabel": "k, images found", "ylabel": "P@k", "xscale": "log", "ylim": (0, 1)}
    svg = _draw("precision", SIZE, lambda axis: _lines(axis, lines, axes))
    return Drawing(svg, "Precision of the first k images", "; ".join(findings))


def recall_curves(rankings: list[numbers.Ranking]) -> Drawing:
    """Precision over recall, of `numbers.Ranking`s."""
    lines = {one.name: (one.curve.recall, one.curve.precision) for one in rankings}
    at_half = [
        f"{name} {np.interp(0.5, recall, precision):.3f}"
        for name, (recall, precision) in lines.items()
    ]
    axes = {"xlabel": "recall", "ylabel": "precision", "xlim": (0, 1), "ylim": (0, 1)}
    svg = _draw("recall", SIZE, lambda axis: _lines(axis, lines, axes))
    finding = f"Precision where half of the relevant images are found: {', '.join(at_half)}"
    return Drawing(svg, "Precision and recall", finding)


def code_lengths(points: dict[str, list[tuple[int, float]]]) -> Drawing:
    """mAP over the bits of a code: dict of name -> list of (bits, mAP)."""
    lines = {name: list(zip(*sorted(found), strict=True)) for name, found in points.items()}
    bits = sorted({number for sizes, _ in lines.values() for number in sizes})

    def paint(axis):
        axes = {"xlabel": "bits of a code", "ylabel": "mAP", "xticks": bits}
        _lines(axis, lines, axes, marker="o")

    findings = [
        f"{name}: {', '.join(f'{value:.4f} at {size} bits' for size, value in sorted(found))}"
        for name, found in points.items()
    ]
    return Drawing(_draw("lengths", SIZE, paint), "mAP at each code length", "; ".join(findings))


def training_curve(name: str, epochs: list[int], values: list[float]) -> Drawing:
    """One quantity after each epoch, in small; epochs count from 1."""

    def paint(axis):
        _lines(axis, {"": (epochs, values)}, {"xlabel": "epoch", "title": name}, marker=".")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    ends = [f"{values[place]:.4g} after epoch {epochs[place]}" for place in (0, -1)]
    finding = f"From {ends[0]} to {ends[1]}" if len(values) > 1 else ends[0]
    return Drawing(_draw(f"curve {name}", SMALL, paint), name.capitalize(), finding)


def word_usage(shares: np.ndarray, perplexity: np.ndarray) -> Drawing:
    """How often each word of each book is taken: float [M, K], and float [M]."""

    def paint(axis):
        clear = [(*to_rgb(COLORS[0]), opacity) for opacity in (0, 1)]
        shades = LinearSegmentedColormap.from_list("shades", clear)
        axis.pcolormesh(shares, cmap=shades, vmin=0)
        axis.grid(False)
        for side, count in zip((axis.yaxis, axis.xaxis), shares.shape, strict=True):
            shown = np.arange(0, count, -(-count // 16))
            side.set_ticks(shown + 0.5, shown)
        axis.set(xlabel="word", ylabel="book")
        axis.invert_yaxis()

    book, word = np.unravel_index(shares.argmax(), shares.shape)
    finding = (
        f"Of {shares.size} words {np.sum(shares == 0)} are never taken. Of {shares.shape[1]} words "
        f"a book, {perplexity.min():.1f} to {perplexity.max():.1f} are in use (perplexity). The "
        f"most taken is word {word} of book {book}: {shares.max():.0%} of the images"
    )
    return Drawing(_draw("usage", SIZE, paint), "How often each word is taken", finding)


def planes(plane: numbers.Plane) -> list[Drawing]:
    """A `numbers.Plane` as two figures, embeddings and codewords, on the same axes.

    Each of the first labels has one of `COLORS`, and its number is drawn at its mean.
    """
    both = np.concatenate([plane.embeddings, plane.codewords])
    margin = 0.05 * np.ptp(both, axis=0) + 1e-9
    low, high = both.min(axis=0) - margin, both.max(axis=0) + margin
    axes = {"xlim": (low[0], high[0]), "ylim": (low[1], high[1])}
    axes |= {"xlabel": "component 1", "ylabel": "component 2"}
    moved = np.linalg.norm(plane.codewords - plane.embeddings, axis=1).mean()
    findings = {
        "Embeddings": f"{len(plane.embeddings)} images; the two components hold "
        f"{plane.explained[0]:.0%} and {plane.explained[1]:.0%} of the variance",
        "Their codewords": f"{len(np.unique(plane.codewords.round(6), axis=0))} different points "
        f"stand for {len(plane.codewords)} images, {moved:.3g} from the embedding in the mean",
    }
    drawings = []
    for name, points in zip(findings, (plane.embeddings, plane.codewords), strict=True):
        svg = _draw(name, SQUARE, lambda axis, x=points: _points(axis, x, plane.labels, axes))
        drawings.append(Drawing(svg, name, findings[name]))
    return drawings


def pair_distances(pairs: numbers.Pairs) -> Drawing:
    """How far apart images with and without a label in common are, of `numbers.Pairs`."""

    def paint(axis):
        kinds = {"a label in common": pairs.within, "none": pairs.between}
        for place, (name, shares) in enumerate(kinds.items()):
            style = {"color": COLORS[place], "linestyle": _DASHES[place], "label": name}
            axis.stairs(shares, pairs.edges, linewidth=1.8, **style)
        highest = max(pairs.within.max(), pairs.between.max())
        axis.set(xlabel=f"distance by {pairs.name}", ylabel="share of the pairs")
        axis.set_ylim(0, 1.3 * highest)
        axis.legend(loc="upper right")

    finding = (
        f"Mean distance {pairs.means[0]:.3g} with a label in common, {pairs.means[1]:.3g} without; "
        f"a pair with one is the nearer in {pairs.separation:.0%} of the comparisons (chance 50%)"
    )
    return Drawing(_draw(pairs.name, SIZE, paint), f"Distances by {pairs.name}", finding)


def single_books(precision: np.ndarray, k: int) -> Drawing:
    """float [M] P@k where one book's parts are compared, as bars."""

    def paint(axis):
        axis.bar(np.arange(len(precision)), precision, color=COLORS[0])
        axis.grid(False, axis="x")
        axis.set(xlabel="book", ylabel=f"P@{k}", xticks=np.arange(len(precision)))

    ends = [
        f"{precision[book]:.3f} (book {book})" for book in (precision.argmin(), precision.argmax())
    ]
    finding = f"P@{k} from {ends[0]} to {ends[1]}"
    return Drawing(_draw("books", SIZE, paint), "What each book finds alone", finding)


def _lines(axis, lines, axes, **style):
    for place, (name, (x, y)) in enumerate(lines.items()):
        dash = _DASHES[place % len(_DASHES)]
        axis.plot(x, y, color=COLORS[place], linestyle=dash, label=name, **style)
    axis.set(**axes)
    if len(lines) > 1:
        axis.legend()


def _points(axis, points, known, axes):
    labels = np.zeros(len(points), int) if known is None else known
    dots = {"markersize": 3.5, "alpha": 0.8, "markeredgewidth": 0}
    for label in np.unique(labels):
        color = COLORS[label] if label < len(COLORS) else _MUTED
        axis.plot(*points[labels == label].T, ".", color=color, **dots)
    for label in np.unique(labels) if known is not None else ():
        if label < len(COLORS):
            middle = {"ha": "center", "va": "center", "fontweight": "bold", "fontsize": 11}
            axis.text(*points[labels == label].mean(axis=0), str(label), **middle)
    axis.grid(False)
    axis.set(**axes)


def _draw(name, size, paint):
    """The <svg> of what `paint` does to a Matplotlib axis; `name` keeps its ids apart."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(size, layout="constrained")
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg")
    # An element of the page: colors by variables, no ids but those referred to.
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
