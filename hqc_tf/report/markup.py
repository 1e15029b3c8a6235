"""Pieces of a page: each takes plain text or numbers, and gives HTML in which they are escaped."""

import base64
import html

from hqc_tf.errors import printable

# Characters beyond which a cell of a table may break into lines.
_LONG = 50


class Markup(str):
    """HTML that stands on the page as it is; any other text is escaped."""

    __slots__ = ()


def text(value):
    """What shows as `value`, whatever characters it has: a number, a name, or `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(printable(value)))


def element(tag, *inside, **attributes):
    """An element around some values; `class_` is its class, "_" in a name is "-", None none."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{named}>{''.join(map(text, inside))}</{tag}>")


def join(parts):
    """Some values after each other."""
    return Markup("\n".join(map(text, parts)))


def image(png, alt):
    """An image that the page carries itself, of the bytes of a PNG file."""
    data = base64.b64encode(png).decode()
    return Markup(f'<img src="data:image/png;base64,{data}" alt="{text(alt)}">')


def table(caption, head, rows):
    """A table that scrolls by itself where it is too wide, by keyboard too.

    The first cell of a row is its head.
    """
    top = element("tr", *(element("th", name, scope="col") for name in head))
    body = [
        element("tr", _cell("th", first, scope="row"), *(_cell("td", value) for value in others))
        for first, *others in rows
    ]
    inside = element(
        "table",
        element("caption", caption),
        element("thead", top),
        element("tbody", *body),
    )
    return element("div", inside, class_="wide", role="region", aria_label=caption, tabindex=0)


def _cell(tag, value, **attributes):
    return element(tag, value, class_="long" if len(str(value)) > _LONG else None, **attributes)


def drawing(one):
    """A `figures.Drawing` with its caption; its words are also the figure's name to a reader."""
    said = text(f"{one.title}: {one.finding}")
    opened = one.svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    caption = element("figcaption", element("b", f"{one.title}. "), f"{one.finding}.")
    return element("figure", Markup(opened), caption)


def drawings(some, class_="figures"):
    """Several `figures.Drawing`s side by side where there is room."""
    return element("div", *map(drawing, some), class_=class_)


def section(name, title, *parts):
    """A part of the page that "#name" leads to."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, join(parts), id=name, aria_labelledby=f"{name}-title")


def paragraph(*parts):
    """A paragraph of text."""
    return element("p", *parts)
