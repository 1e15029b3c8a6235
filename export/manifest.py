"""The manifest.json that stands in each exported folder and says what the folder is."""

import json
import pathlib
import uuid

from hqc_tf import files

MANIFEST = "manifest.json"


def write_manifest(folder, kind, contents):
    """Writes dict `contents`, which JSON can hold, as the manifest of a `kind` of folder."""
    text = json.dumps({"format": kind, **contents}, indent=2) + "\n"
    write_whole(pathlib.Path(folder, MANIFEST), lambda file: file.write(text.encode()))


def read_manifest(folder, kind):
    """The manifest of `folder` as a dict, or None where it has none of this `kind`."""
    try:
        manifest = json.loads(pathlib.Path(folder, MANIFEST).read_text())
        return manifest if manifest["format"] == kind else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_whole(path, write):
    """`files.write_whole` where others may write the same; one killed leaves .NAME.*.partial.

    Args:
      path: `pathlib.Path` of the file; one that stands is replaced.
      write: called with a binary file.
    """
    # Two machines that share the folder may have processes of one number.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    files.write_whole(path, write, aside)
