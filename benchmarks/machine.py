"""What benchmarks share: the machine, the versions and the commit they name, free ports, and
processes that are measured alone.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import platform
import re
import socket
import subprocess

import tensorflow as tf

from hqc_tf import _keras2

_ROOT = pathlib.Path(__file__).parents[1]


def hardware():
    """dict of the processor, its cores, the GPUs and the versions that run on them."""
    cpu = platform.processor() or platform.machine()
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    devices = [device.name for device in tf.config.list_physical_devices("GPU")]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpus": devices,
        "python": platform.python_version(),
        **_keras2.versions(),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
    }


def describe(hardware):
    """A `hardware` dict as words on one line."""
    return ", ".join(f"{name} {value}" for name, value in hardware.items())


def commit():
    """The commit of this tree, and whether what a training reads differs from it."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "hqc_tf", "configs")
    except (OSError, subprocess.CalledProcessError):
        return "not in git"
    return f"{name}, with changes" if changed else name


def free_ports(count):
    """Ports of this machine that nothing listens on, for processes that are to talk here."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def apart(function, *arguments):
    """What a function gives in a process of its own, so that its memory is its own.

    BrokenProcessPool where the process ends otherwise.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *arguments).result()


def memory_mib(kind="VmHWM"):
    """MiB of this process: at most so far ("VmHWM"), now ("VmRSS") or not of files ("RssAnon")."""
    # ru_maxrss would begin with what the starting process had.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+)", status)[1]) / 1024


def _git(*arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
