"""Attacks on the whole product, repeated: `python -m benchmarks.campaign --data_dir=data/tfds`

Mutated and costly images, kills and full disks at the instants of commands that write, servers that
answer nonsense, and writers and readers of one index at once. Prints a line of JSON for each
attack, then a table; ends with status 1 where a case failed. Each attack has a process of its own,
which ends it as failed where it crashes or hangs.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool

from absl import flags

from benchmarks import machine
from benchmarks.campaign import faults, images, races, servers, stage
from benchmarks.campaign.row import Row, watched
from hqc_tf import commands
from hqc_tf.errors import UserError


def attacks(values) -> dict:
    """Name -> (function of folder, seed, count and end, its count), in the order of running."""
    found = {
        "images": (images.mutated, values.images),
        "converted": (images.converted_files, values.images // 10),
        "costly": (images.costly, 0),
        "large": (images.large_request, 0),
    }
    for name, command in faults.COMMANDS.items():
        short = name.replace(", ", "_")
        points = values.slow_points if command.is_slow else values.points
        found[f"kill_{short}"] = (functools.partial(faults.kills, name=name), points)
        found[f"disk_{short}"] = (functools.partial(faults.full_disks, name=name), points)
    for protocol in ("REST", "gRPC"):
        attack = functools.partial(servers.attack, protocol=protocol)
        found[f"server_{protocol}"] = (attack, values.answers)
    return found | {"races": (races.attack, values.races)}


def _run(name, attack, count, folder, seed, seconds):
    began = time.monotonic()
    try:
        row = machine.apart(watched, attack, folder, seed, count, seconds)
    except BrokenProcessPool:
        row = Row(name, 1, 1, failures=["the process crashed or hung; see above"])
    except Exception as error:
        row = Row(name, 1, 1, failures=[f"{type(error).__name__}: {error}"])
    line = dataclasses.asdict(row) | {"seed": seed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(line), flush=True)
    return row


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| attack | tried | failed | most MiB | longest s |", "|---|---|---|---|---|"]
    for row in rows:
        worst = f"{row.worst_mib:.0f} | {row.worst_seconds:.1f}"
        lines.append(f"| {row.attack} | {row.tried:,} | {row.failed} | {worst} |")
    return "\n".join(lines)


def main(_):
    values = flags.FLAGS
    known = attacks(values)
    chosen = values.attacks or [*known]
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"--attacks={unknown[0]}: not known; take some of {', '.join(known)}")
    print(f"{machine.describe(machine.hardware())}, commit {machine.commit()}", flush=True)
    ends, rows = time.monotonic() + 60 * values.minutes, []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        machine.apart(stage.write, folder, values.data_dir)
        for place, name in enumerate(chosen):
            # What is left of the time, in equal shares.
            seconds = max(1, (ends - time.monotonic()) / (len(chosen) - place))
            rows.append(_run(name, *known[name], folder, values.seed, seconds))
    print(table(rows))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    flags.DEFINE_list("attacks", [], "which ones, by name; empty: all")
    flags.DEFINE_float("minutes", 60, "for all of them; what is not begun by then is left out", 1)
    flags.DEFINE_integer(
        "images", 20_000, "mutated images; a tenth as many for Pillow", lower_bound=1
    )
    flags.DEFINE_integer("points", 0, "kills, and full disks, of index and encode; 0: all", 0)
    flags.DEFINE_integer("slow_points", 12, "the same of saved_model and training", 0)
    flags.DEFINE_integer("answers", 100, "of a bad server, by each protocol", lower_bound=1)
    flags.DEFINE_integer("races", 10, "appends of each writer", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "of the images and answers", lower_bound=0)
    flags.DEFINE_string("data_dir", "data/tfds", "where prepared Fashion-MNIST lies")
    commands.run(main)
