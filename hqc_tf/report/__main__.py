"""Writes a page about a trained run: `python -m hqc_tf.report --workdir=runs/cifar10`."""

from absl import flags

from hqc_tf import commands, evaluate
from hqc_tf.report import write_report


def main(_: list[str]) -> None:
    values = flags.FLAGS
    changed = evaluate.given_settings("dataset", "data_dir", "queries", "labels")
    print(write_report(values.workdir, values.output, values.untrained, **changed))


if __name__ == "__main__":
    text = "folder of a training; repeat it to compare others on the same data"
    flags.DEFINE_multi_string("workdir", None, text, required=True)
    flags.DEFINE_string("output", None, "page to write; default: report.html in the first workdir")
    evaluate.define_data_flags()
    text = "compare the network before training, which takes as long again"
    flags.DEFINE_bool("untrained", True, text)
    commands.run(main)
