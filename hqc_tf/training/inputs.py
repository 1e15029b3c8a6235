"""The files that a run began with: a run that resumes must find the same ones."""

import stat

from hqc_tf.data import catalog
from hqc_tf.errors import UserError
from hqc_tf.workdir import InputFile

_SHOWN = 3


def list_files(dataset: str) -> list[InputFile]:
    """The files of `--dataset` and their sizes; empty for a data set by name."""
    source = catalog.parse(dataset)
    found = []
    for name in source.files() if source.is_files else ():
        try:
            status = (source.root / name).stat()
        except OSError:
            continue  # listed in rejects.jsonl
        if stat.S_ISREG(status.st_mode):
            found.append(InputFile(name, status.st_size))
    return found


def describe_changes(dataset: str, before: list[InputFile], rejected: frozenset[str]) -> str:
    """How many files were added, are missing or have another size, with names; "" where none.

    Args:
        dataset: `--dataset`.
        before: what `list_files` gave when the run began; empty: not known.
        rejected: ids that the run leaves out; such files may be fixed or removed.
    """
    if not before:
        return ""
    if catalog.parse(dataset).kind == "tfrecord":
        rejected = frozenset()  # a file has other records, which are trained on
    old, new = (
        {file.name: file.bytes for file in listed if file.name not in rejected}
        for listed in (before, list_files(dataset))
    )
    changes = {
        "added": new.keys() - old.keys(),
        "missing": old.keys() - new.keys(),
        "of another size": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    return ", ".join(f"{len(x)} {how} ({_first(x)})" for how, x in changes.items() if x)


def check_files(dataset: str, before: list[InputFile], rejected: frozenset[str]) -> None:
    """Raises `UserError` where `describe_changes` finds any."""
    if changes := describe_changes(dataset, before, rejected):
        raise UserError(
            f"--dataset={dataset}: not the files that this run began with: {changes}; restore "
            "them, or take another --workdir"
        )


def _first(names):
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown + ["..."] * (len(names) > _SHOWN))
