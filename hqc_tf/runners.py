"""Independent parts of work on any runner of Apache Beam: the shards of encode and of embed.

Workers need this project with its requirements, and all files under the same paths.
"""

from collections.abc import Sequence
from typing import Any

from hqc_tf.errors import UserError

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners import create_runner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
except ModuleNotFoundError as error:
    raise UserError(
        f"--runner: Apache Beam is missing ({error}); pip install 'hqc-tf[beam]', or give local"
    ) from error

# Beam knows its runners by name, but this one only by its class.
_CLASSES = {"dask": "apache_beam.runners.dask.dask_runner.DaskRunner"}


def run_parts(
    work: beam.DoFn, parts: Sequence[Any], runner: str, arguments: Sequence[str] = ()
) -> None:
    """Applies `work` to each of `parts` and waits until all are done.

    Args:
        work: of a part; a runner may give it one twice, for example after a failure elsewhere.
        parts: can be pickled.
        runner: such as direct, dask, flink or dataflow; UserError where Beam has none of the name.
        arguments: Beam's own flags.
    """
    with beam.Pipeline(**_runner(runner, len(parts), arguments)) as pipeline:
        # Without the shuffle a runner may run all parts one after the other.
        _ = pipeline | beam.Create(parts) | beam.Reshuffle() | beam.ParDo(work)


def _runner(name, count, arguments):
    # Beam's own DirectRunner downloads a program first.
    if name == "direct":
        return {"runner": FnApiRunner(), "options": PipelineOptions(arguments)}
    known = _CLASSES.get(name, name)
    try:
        create_runner(known)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner={name}: {error}; give another, or install it") from error
    # Dask's scheduler gives all parts of a partition to one worker, and by default has one.
    own = [f"--dask_npartitions={count}"] if name == "dask" else []
    return {"options": PipelineOptions([f"--runner={known}", *own, *arguments])}
