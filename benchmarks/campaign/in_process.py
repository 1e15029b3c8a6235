"""Runs commands in this process as `python -m` would, hundreds where new processes are slow."""

import contextlib
import io
import runpy
import signal
import sys
import warnings
from typing import NamedTuple

from absl import flags
from absl.testing import flagsaver


class Done(NamedTuple):
    """How a command ended; any exception but SystemExit comes out of `run` as it is."""

    status: int
    stdout: str
    stderr: str


def run(module, *arguments):
    """What `python -m module` does with some arguments, which may be paths."""
    before = flagsaver.save_flag_values()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, sys.argv = sys.argv, [module, *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    status = 0
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            # The module may be known to this process by its own name too.
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
        flags.FLAGS.unparse_flags()
        flagsaver.restore_flag_values(before)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())
    return Done(status, *said)
