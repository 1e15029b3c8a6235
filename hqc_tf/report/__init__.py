"""A trained run on one page: what it learned, how well it finds, and what it finds."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from hqc_tf import files
from hqc_tf.errors import UserError, check_packages
from hqc_tf.report import gather

REPORT = "report.html"


def write_report(
    workdirs: Sequence[str],
    output: str | None = None,
    untrained: bool = True,
    **changed: Any,
) -> pathlib.Path:
    """Writes the report of the first of some workdirs atomically; returns its path.

    `output` is by default report.html in the first workdir; the rest is as in `gather.gather`.
    UserError as there, where `output` cannot be written, or a package is missing.
    """
    check_packages("a report", ("matplotlib", "jinja2"), "report")
    # It takes Matplotlib.
    from hqc_tf.report import page

    gather.read_runs(workdirs)
    output = pathlib.Path(output or pathlib.Path(workdirs[0], REPORT))
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output}: must be a file in a folder that exists; name another")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"--output={output}: its folder cannot be written; name a file in another")
    text = page.render(gather.gather(workdirs, untrained, **changed))
    files.replace_text(output, text)
    return output
