"""The manifest.json that stands in each exported folder and says what the folder is."""

import json
import pathlib

MANIFEST = "manifest.json"


def write_manifest(folder, kind, contents):
    """Writes dict `contents`, which JSON can hold, as the manifest of a `kind` of folder."""
    text = json.dumps({"format": kind, **contents}, indent=2)
    pathlib.Path(folder, MANIFEST).write_text(text + "\n")


def read_manifest(folder, kind):
    """The manifest of `folder` as a dict, or None where it has none of this `kind`."""
    try:
        manifest = json.loads(pathlib.Path(folder, MANIFEST).read_text())
        return manifest if manifest["format"] == kind else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
