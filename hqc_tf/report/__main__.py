"""Writes a page about a trained run: `python -m hqc_tf.report --workdir=runs/cifar10`."""

import pathlib

from absl import flags

from hqc_tf import commands, files
from hqc_tf.errors import UserError
from hqc_tf.report import contents, page, scene

REPORT = "report.html"


def write_report(workdirs, output=None, data_dir=None, untrained=True):
    """Writes the report of the first of some workdirs, whole or not at all; returns its path.

    Args:
      workdirs, data_dir, untrained: as in `contents.gather`.
      output: file to write; None: report.html in the first workdir.

    Raises:
      UserError: as `contents.gather`, or `output` cannot be a file.
    """
    scene.read_runs(workdirs)
    output = pathlib.Path(output or pathlib.Path(workdirs[0], REPORT))
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output}: must be a file in a folder that exists; name another")
    text = page.render(contents.gather(workdirs, data_dir, untrained))
    files.replace_text(output, text)
    return output


def main(_):
    values = flags.FLAGS
    print(write_report(values.workdir, values.output, values.data_dir, values.untrained))


if __name__ == "__main__":
    flags.DEFINE_multi_string(
        "workdir",
        None,
        "folder that a training left; given again, others on the same data to stand beside it",
        required=True,
    )
    flags.DEFINE_string("output", None, "page to write, if not report.html in the first workdir")
    flags.DEFINE_string("data_dir", None, "where the data lies now, if not where it was trained")
    flags.DEFINE_bool(
        "untrained", True, "compare the network before training, which is encoded with too"
    )
    commands.run(main)
