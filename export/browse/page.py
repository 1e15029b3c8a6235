"""The pages that people look at, made of a template; their one script is static/browse.js."""

import math
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import HTMLResponse

from export.arrays import unpack_id
from export.duplicates import Group
from export.index import Index
from hqc_tf import files
from hqc_tf.data.pictures import spread
from hqc_tf.errors import naming_damage, printable

HERE = pathlib.Path(__file__).parent
# Images of the page before there is a query; sub-folders that it offers, and images looked through
# for them.
SAMPLES, FOLDERS, LOOKED_THROUGH = 24, 500, 2**18
# Groups of a page of duplicates, and images of a group that are shown.
GROUPS, SHOWN = 20, 24


class Pages:
    """The pages of an index.

    Args:
        index: of the images.
        samples: ids that are shown before there is a query.
        body_bytes: most bytes of an image that is sent.
        takes_images: whether one can be sent.
        duplicates: file of groups; empty where there is none; UserError where it is something else.
    """

    def __init__(
        self,
        index: Index,
        samples: Sequence[str],
        body_bytes: int,
        takes_images: bool,
        duplicates: str,
    ):
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
        )
        environment.filters["address"] = address
        self._template = environment.get_template
        self._known = {
            "images": index.num_images,
            "bits": index.manifest["bits"],
            "body_bytes": body_bytes,
            "takes_images": takes_images,
            "has_duplicates": bool(duplicates),
        }
        self._samples = [*dict.fromkeys(samples)]
        self._folders = find_folders(index)
        self._groups = Groups(duplicates) if duplicates else None

    async def search(self, _: Request) -> HTMLResponse:
        return self._html("page.html.jinja", samples=self._samples, folders=self._folders)

    def duplicates(self, request: Request) -> HTMLResponse:
        if self._groups is None:
            text = "no duplicates were looked for: run export.duplicates, and give --duplicates"
            return self._html("duplicates.html.jinja", groups=[], page=1, pages=1, note=text)
        pages = max(1, math.ceil(len(self._groups) / GROUPS))
        asked = request.query_params.get("page", "1")
        page = min(max(1, int(asked)), pages) if asked.isdecimal() and len(asked) < 10 else 1
        groups = self._groups.read((page - 1) * GROUPS, GROUPS)
        note = "" if groups else "no image is there twice"
        return self._html("duplicates.html.jinja", groups=groups, page=page, pages=pages, note=note)

    def _html(self, name: str, **shown: Any) -> HTMLResponse:
        text = self._template(name).render(**self._known, shown_at_most=SHOWN, **shown)
        # In ASCII, for names that are not UTF-8.
        return HTMLResponse(text.encode("ascii", "xmlcharrefreplace"))


class Groups:
    """The lines of a file of groups, found once and read when they are shown."""

    def __init__(self, path: str):
        self._path = pathlib.Path(path)
        with naming_damage(path, "write it with export.duplicates"), self._path.open("rb") as file:
            self._starts = np.cumsum([0, *map(len, file)])
        self.read(0, 1)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, first: int, count: int) -> list[Group]:
        """Some groups, from the first on; UserError where a line is not one."""
        bounds = self._starts[first : first + count + 1]
        with self._path.open("rb") as file:
            file.seek(bounds[0])
            lines = file.read(bounds[-1] - bounds[0]).splitlines()
        return files.parse_lines(lines, self._path, Group, first + 1)


def find_folders(index: Index) -> list[str]:
    """Folders that ids begin with, each with a slash at the end, in order: the first `FOLDERS`."""
    rows = spread(index.num_images, LOOKED_THROUGH)
    folders = pc.unique(pc.replace_substring_regex(index.ids.take(rows), "[^/]*$", "")).to_pylist()
    names = map(unpack_id, folders)
    found = {name[: end + 1] for name in names for end, c in enumerate(name) if c == "/"}
    return sorted(found)[:FOLDERS]


def address(name: str) -> str:
    """An id as it stands in an address."""
    return urllib.parse.quote(os.fsencode(name), safe="")
