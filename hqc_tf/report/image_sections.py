"""The sections of the page that show images: `contents.Report` -> list of HTML parts each."""

from hqc_tf.report import figures, numbers
from hqc_tf.report.markup import Markup, drawings, element, image, join, paragraph

_MARKS = {True: ("✓ ", ", right", "right"), False: ("✗ ", ", wrong", "wrong"), None: ("", "", None)}


def gallery(report):
    """Some queries and what is found for them."""
    if report.rankings:
        top_k = report.rankings[0].scores.top_k
        said = (
            "The best, median and worst queries by average precision (AP), and the images nearest "
            "by code. Solid frame and ✓: a label of the query; dashed and ✗: none of them. AP "
            f"looks at the right ones of the first {top_k} alone: where there is one, in the first "
            "place, it is 1."
        )
    else:
        said = (
            "Queries whose nearest image is near, at the median distance, and far: without labels "
            "a distance is all that can be said."
        )
    parts = [paragraph(said, " Below an image is its distance, the same for equal codes.")]
    for kind in dict.fromkeys(one.kind for one in report.gallery):
        parts.append(element("h3", kind))
        parts += [
            _neighbors(one.query, one.found, one.average_precision)
            for one in report.gallery
            if one.kind == kind
        ]
    return parts


def books(report):
    """What each book finds alone."""
    parts = [
        paragraph(
            "What a book looks at: here its part of the embedding alone, before it is quantized, "
            "is compared with the same part of the other images."
        )
    ]
    if report.book_precision is not None:
        parts.append(drawings([figures.single_books(report.book_precision, numbers.NEAR)]))
        count = min(report.queries, numbers.POINTS)
        parts.append(paragraph(f"Means over {count} queries."))
    for one in report.gallery:
        if one.by_book:
            summary = f"{one.kind}: {one.query.label or one.query.name}, book by book"
            rows = [
                join([element("h3", f"Book {book}"), _neighbors(one.query, found)])
                for book, found in enumerate(one.by_book)
            ]
            parts.append(element("details", element("summary", summary), *rows))
    return parts


def plane(report):
    """Embeddings and their codewords in a plane."""
    shown = report.plane
    parts = [
        paragraph(
            f"{len(shown.embeddings)} of the searched images in the plane of the two largest "
            "principal components of their embeddings, and the codewords that stand for them."
        ),
        drawings(figures.planes(shown)),
    ]
    if shown.labels is not None:
        parts.append(_legend(report.label_names))
    return parts


def _legend(names):
    items = []
    for number, name in enumerate(names[: len(figures.COLORS)]):
        color = f"background: var(--color-{number})"
        swatch = element("span", class_="swatch", style=color)
        items.append(element("li", swatch, f"{number} {name}"))
    if len(names) > len(items):
        items.append(element("li", f"grey: the other {len(names) - len(items)} labels"))
    return element("ul", *items, class_="legend")


def _neighbors(query, found, average_precision=None):
    name = query.label or query.name
    scored = average_precision is not None
    said = f"AP {average_precision:.3f}" if scored else ""
    words = [element("b", "Query "), name, Markup("<br>"), said]
    alt = f"Query: {name}" + (f", average precision {average_precision:.3f}" if scored else "")
    first = element("li", image(query.png, alt), *words, class_="query")
    others = [_found(place, one) for place, one in enumerate(found, start=1)]
    return element("ul", first, *others, class_="neighbors")


def _found(place, one):
    mark, said, class_ = _MARKS[one.relevant]
    name, distance = one.label or one.name, f"{one.distance:.3g}"
    alt = f"{place}: {name}{said}, distance {distance}"
    words = [element("b", mark), name, Markup("<br>"), distance]
    return element("li", image(one.png, alt), *words, class_=class_)
