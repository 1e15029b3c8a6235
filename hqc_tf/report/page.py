"""The page of a `contents.Report`: one HTML file that carries all it shows and runs no script."""

import pathlib

from hqc_tf.data import catalog
from hqc_tf.report import image_sections, number_sections
from hqc_tf.report.markup import element, join, paragraph, section, text

# Nothing is fetched and nothing is run, whatever a name on the page holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PARTS = {
    "retrieval": ("How well it finds", number_sections.retrieval),
    "lengths": ("Code lengths and weights", number_sections.lengths),
    "training": ("Training", number_sections.training),
    "words": ("Use of the codewords", number_sections.words),
    "gallery": ("Queries and what they find", image_sections.gallery),
    "books": ("Single books", image_sections.books),
    "plane": ("Embeddings and codewords", image_sections.plane),
    "distances": ("Distances within and between labels", number_sections.distances),
    "search": ("Speed and size", number_sections.search),
    "settings": ("Settings", number_sections.settings),
}


def render(report):
    """`contents.Report` -> str, ASCII, so that nothing reads it in another encoding."""
    c = report.settings
    title = f"{catalog.protocol(c.dataset)}: image search at {c.bits} bits"
    links = [element("li", element("a", name, href=f"#{key}")) for key, (name, _) in _PARTS.items()]
    main = [section(key, name, *write(report)) for key, (name, write) in _PARTS.items()]
    page = _PAGE.format(
        title=text(title),
        policy=_POLICY,
        style=pathlib.Path(__file__).with_name("style.css").read_text(),
        heading=element("h1", title),
        about=_about(report),
        key=_key(report),
        nav=element("nav", element("ul", *links), aria_label="Sections"),
        main=join(main),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<header>
{heading}
{about}
{key}
{nav}
</header>
<main id="main" tabindex="-1">
{main}
</main>
</body>
</html>
"""


def _about(report):
    c, others = report.settings, [run.workdir for run in report.runs]
    others.remove(report.workdir)
    return paragraph(
        "The best weights of ",
        element("code", report.workdir),
        f", chosen without labels: those after step {report.step}; {len(report.epochs)} of "
        f"{c.epochs} epochs are trained. {report.search.images} images are searched and "
        f"{report.queries} ask. A code has {c.num_books} books of {c.num_words} words; the "
        f"distance is {c.distance}.",
        f" Beside it: {', '.join(others)}." if others else "",
    )


def _key(report):
    shown = {}
    for one in report.rankings:
        name = f"mAP@{one.scores.top_k}, {one.name}"
        shown[name] = f"{one.scores.mean_average_precision:.4f}"
    if report.rankings:
        shown["the same, by chance"] = f"{report.chance:.4f}"
    if judged := report.without_labels["trained"]:
        shown["recall@1, without labels"] = f"{judged.recall_at_1:.3f}"
    shown["bytes an image"] = f"{report.search.code_bytes:g}"
    shown["one query, all codes"] = f"{report.search.one_query:.3g} ms"
    pairs = [element("div", element("dt", k), element("dd", v)) for k, v in shown.items()]
    return element("dl", *pairs, class_="key")
