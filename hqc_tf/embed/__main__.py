"""Embeds images by a pretrained network once, so that training on them takes minutes.

`python -m hqc_tf.embed --dataset=folder:photos/ --backbone=saved_model:net/ --image_size=224
--output=features/` writes the vectors of the plain view and of random views of each image;
`--dataset=features:features/` of hqc_tf.train reads them. The same command resumes.
"""

import functools

from absl import flags

from hqc_tf import commands, config
from hqc_tf.embed import embed_dataset
from hqc_tf.errors import UserError, counted
from hqc_tf.workdir import read_rejects


def main(arguments: list[str]) -> None:
    values = flags.FLAGS
    own = values.output, values.views, values.dtype, _runner(values, arguments)
    found = embed_dataset(config.from_flags(), *own)
    rejects = len(read_rejects(values.output))
    print(
        f"{values.output}: {counted(found.images, 'image')} in {counted(found.shards, 'shard')}, "
        f"{1 + found.views} x {found.width} {found.dtype} each, {rejects} rejected"
        + (f" ({values.output}/rejects.jsonl has the reasons)" if rejects else "")
    )


def _runner(values, arguments):
    """The `run` of `embed_dataset` that --runner names."""
    if values.runner == "local":
        if arguments:
            raise UserError(
                f"{arguments[0]}: not a flag; give flags of Beam only with a --runner of Beam"
            )
        return None
    # Beam is an optional package.
    from hqc_tf.embed.beam import embed_on_beam

    return functools.partial(embed_on_beam, runner=values.runner, arguments=arguments)


if __name__ == "__main__":
    config.define_flags()
    flags.DEFINE_string("output", None, "folder to write; the same command resumes", required=True)
    flags.DEFINE_integer(
        "views", 8, "random views of each image beside its plain one; 0, or at least 2", 0, 2**16
    )
    flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "of the numbers on the disk")
    flags.DEFINE_string(
        "runner",
        "local",
        "local, or Apache Beam's direct, dask, flink, ...; its flags follow after --",
    )
    flags.adopt_module_key_flags(config)
    commands.run(main, takes_arguments=True)
