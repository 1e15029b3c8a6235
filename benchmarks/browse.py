"""The page's server under load: `python -m benchmarks.browse --saved_model=serving/hqc`

Starts `export.browse` over random codes of the encoder's books and sends a JPEG of 4 megapixels:
one request after the other, then many at once. Prints the median and the 99th percentile of a
request's time, and the memory of the server before and after the requests by id that follow.
"""

import concurrent.futures
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
import PIL.Image
from absl import flags

from benchmarks import machine
from export.encoder import load_encoder
from export.index import write_index
from hqc_tf import commands

SIDES = 2464, 1632


def make_photo():
    """The bytes of a JPEG that is as hard to decode as a photo: soft noise of several sizes."""
    rng, picture = np.random.default_rng(0), 0.0
    for part in (4, 16, 64):
        sides = SIDES[1] // part, SIDES[0] // part, 3
        small = PIL.Image.fromarray(rng.integers(0, 256, sides, np.uint8))
        picture = picture + np.asarray(small.resize(SIDES, PIL.Image.Resampling.BICUBIC)) / 3.0
    file = io.BytesIO()
    PIL.Image.fromarray(picture.astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def post(address, body, kind):
    """Seconds that a request takes, and its answer; an error where its status is not 200."""
    request = urllib.request.Request(f"{address}api/search", body, {"Content-Type": kind})
    begun = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    return time.perf_counter() - begun, found


def describe(name, seconds):
    middle, late = 1000 * np.percentile(seconds, [50, 99])
    return f"{name}: {len(seconds)} requests, p50 {middle:.0f} ms, p99 {late:.0f} ms"


def memory_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def measure(address, process, values):
    """Lines of figures."""
    photo = make_photo()
    for _ in range(3):
        post(address, photo, "image/jpeg")
    alone = [post(address, photo, "image/jpeg")[0] for _ in range(values.requests)]
    yield describe(
        f"a JPEG of {SIDES[0] * SIDES[1] / 1e6:.1f} megapixels, {len(photo)} bytes", alone
    )
    with concurrent.futures.ThreadPoolExecutor(values.parallel) as pool:
        every = [*pool.map(lambda _: post(address, photo, "image/jpeg")[0],
                           range(values.rounds * values.parallel))]  # fmt: skip
    yield describe(f"{values.parallel} at once", every)
    before, seconds = memory_mib(process), []
    for number in range(values.queries):
        body = json.dumps({"id": str(number % values.images)}).encode()
        seconds.append(post(address, body, "application/json")[0])
        if number in (values.queries // 10, values.queries - 1):
            after = memory_mib(process)
            yield f"{number + 1} requests by id: {before:.0f} MiB before, {after:.0f} after"
    yield describe("by id", seconds)


def main(_):
    values = flags.FLAGS
    encoder = load_encoder(values.saved_model)
    num_books, num_words, _ = encoder.codebooks.shape
    rng = np.random.default_rng(0)
    codes = rng.integers(0, num_words, [values.images, num_books], np.uint8)
    print(machine.describe(machine.hardware()), f"{values.images} images", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        ids = [*map(str, range(values.images))]
        write_index(f"{folder}/index", encoder.codebooks, codes, ids, encoder.identity)
        command = [sys.executable, "-m", "export.browse", "--port=0", f"--images=folder:{folder}",
                   f"--index={folder}/index", "--deadline=300"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address = process.stdout.readline().partition(" ")[0]
            process.stdout.readline()
            for line in measure(address, process, values):
                print(line, flush=True)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    flags.DEFINE_string("saved_model", None, "what export.saved_model wrote", required=True)
    flags.DEFINE_integer("images", 60_000, "in the index", lower_bound=1)
    flags.DEFINE_integer("requests", 100, "one after the other", lower_bound=1)
    flags.DEFINE_integer("parallel", 50, "at once", lower_bound=1)
    flags.DEFINE_integer("rounds", 4, "of so many", lower_bound=1)
    flags.DEFINE_integer("queries", 10_000, "by id, after which memory is looked at", lower_bound=1)
    commands.run(main)
