"""Writes a page about a trained run: `python -m hqc_tf.report --workdir=runs/cifar10`."""

import pathlib
from collections.abc import Sequence

from absl import flags

from hqc_tf import commands, files
from hqc_tf.errors import UserError
from hqc_tf.report import gather, page

REPORT = "report.html"


def write_report(
    workdirs: Sequence[str],
    output: str | None = None,
    data_dir: str | None = None,
    untrained: bool = True,
) -> pathlib.Path:
    """Writes the report of the first of some workdirs atomically; returns its path.

    `output` is by default report.html in the first workdir; the rest is as in `gather.gather`.
    UserError as there, or where `output` cannot be a file.
    """
    gather.read_runs(workdirs)
    output = pathlib.Path(output or pathlib.Path(workdirs[0], REPORT))
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output}: must be a file in a folder that exists; name another")
    text = page.render(gather.gather(workdirs, data_dir, untrained))
    files.replace_text(output, text)
    return output


def main(_: list[str]) -> None:
    values = flags.FLAGS
    print(write_report(values.workdir, values.output, values.data_dir, values.untrained))


if __name__ == "__main__":
    text = "folder of a training; repeat it to compare others on the same data"
    flags.DEFINE_multi_string("workdir", None, text, required=True)
    flags.DEFINE_string("output", None, "page to write; default: report.html in the first workdir")
    flags.DEFINE_string("data_dir", None, "folder of the data, if it has moved since the training")
    text = "compare the network before training, which takes as long again"
    flags.DEFINE_bool("untrained", True, text)
    commands.run(main)
