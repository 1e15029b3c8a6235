"""Images to shards of codes: what `python -m export.encode` is made of."""

import os
from collections.abc import Callable, Sequence

from export import codes
from export.encode import inputs, streaming
from export.encoder import Encoder

Runner = Callable[[Encoder, inputs.Plan, str | os.PathLike, list[int]], None]


def encode_plan(
    encoder: Encoder,
    plan: inputs.Plan,
    folder: str | os.PathLike,
    runner: Runner = streaming.encode_here,
) -> Sequence[int]:
    """Encodes the missing shards of a plan; stopped at any moment, the same call resumes.

    Args:
        plan: made for `folder`.
        folder: absolute path; missing, empty or begun with this plan, else UserError.
        runner: encodes the shards with the given numbers.

    Returns:
        The numbers of the shards that were encoded now.
    """
    count = len(plan.shards)
    own = encoder.codebooks, encoder.identity
    codes.start(folder, *own, count, plan.job, plan.names, plan.keep)
    numbers = [number for number in range(count) if not codes.is_done(folder, number, count)]
    if numbers:
        runner(encoder, plan, folder, numbers)
    return numbers
