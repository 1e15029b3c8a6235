"""What hostile images take beside honest ones: `python -m benchmarks.hostile_images`

Prints the bytes, CPU seconds and peak memory of decoding files that are made to cost much, each as
a batch of one and in a process of its own, beside the largest honest image of the same format.
Ends with status 1 where a hostile one takes over three times as much. Needs about 4 GiB and 5
minutes.
"""

import io
import pathlib
import resource
import struct
import sys
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from benchmarks import machine
from hqc_tf import commands
from hqc_tf.data import decoding
from hqc_tf.data.folder import MAX_FILE_BYTES

SIDE = int(decoding.MAX_PIXELS**0.5)
TIMES = 3
SIZES = 256, 224
MIB = 2**20


def chunk(name, content):
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(side, depth, color, interlaced, before=b"", pixels=None, after=b""):
    """A PNG of zeros, or of `pixels` in chunks, with other chunks before and after these."""
    if pixels is None:
        bits = depth * {0: 1, 2: 3, 6: 4}[color]
        rows = bytes((1 + side * bits // 8) * side * (2 if interlaced else 1))
        pixels = chunk(b"IDAT", zlib.compress(rows, 1))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, interlaced))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + end


def gif(canvas, frame, blocks, between=b""):
    """A GIF of a black frame in the corner, its pixels in `blocks`."""
    head = b"GIF89a" + struct.pack("<HH", canvas, canvas) + b"\x80\0\0" + bytes(6)
    corner = b"\x2c\0\0\0\0" + struct.pack("<HH", frame, frame) + b"\0\x02"
    return head + between + corner + blocks + b"\0;"


def of_pixels(kind, **options):
    """The largest honest image: light that changes slowly, and noise as of a camera."""
    rng, line = np.random.default_rng(0), np.linspace(0, 200, SIDE, dtype=np.float32)
    light = (line[:, None] + line) / 2
    pixels = np.stack([light + rng.integers(0, 24, [SIDE, SIDE]) for _ in range(3)], -1)
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    file = io.BytesIO()
    (image.convert("P") if kind == "GIF" else image).save(file, kind, **options)
    return file.getvalue()


def honest_png():
    return of_pixels("PNG", compress_level=1)


def honest_jpeg():
    return of_pixels("JPEG", quality=95, progressive=True)


def honest_bmp():
    return of_pixels("BMP")


def honest_gif():
    return of_pixels("GIF")


def text_chunks(count):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 * MIB), 9))
    return png(10, 8, 2, 0, text * count)


def png_with_a_profile():
    """Chunks of each other kind that a decoder unpacks or keeps, in all 64 MiB."""
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MIB), 9))
    kept = b"".join(chunk(b"vpAg", bytes(MIB)) + chunk(b"iTXt", b"a\0\0\0\0\0x") for _ in range(64))
    return png(10, 8, 2, 0, profile + kept)


def png_of_chunks_in_turn():
    """As many steps as there may be: no two chunks in a row have the same length."""
    return png(10, 8, 2, 0, b"".join(chunk(b"teXt", bytes(n % 2)) for n in range(8_000)))


def png_of_pixel_chunks_in_turn():
    pixels = zlib.compress(bytes(31 * 10), 0)
    parts = [pixels[at : at + 1] for at in range(len(pixels))]
    empty = [b"", b"", *[b"" for _ in range(7_000)]]
    both = b"".join(chunk(b"IDAT", part) for part in parts) + b"".join(
        chunk(b"IDAT", bytes(n % 2)) for n, _ in enumerate(empty)
    )
    return png(10, 8, 2, 0, pixels=both)


def png_of_most_chunks():
    """An empty chunk in each 12 bytes."""
    return png(10, 8, 2, 0, chunk(b"teXt", b"") * 2_000_000)


def png_with_pixels_too_many():
    noise = np.random.default_rng(0).bytes(MAX_FILE_BYTES - MIB)
    return png(10, 8, 2, 0, after=chunk(b"IDAT", noise))


def png_interlaced_of_64_bits():
    return png(SIDE, 16, 6, 1)


def jpeg_of_scans(count):
    """A progressive JPEG of gray with empty scans: runs of 32,767 blocks without a coefficient."""
    blocks = (-(-SIDE // 8)) ** 2
    table = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = b"\xff\xc2\0\x0b\x08" + struct.pack(">HH", SIDE, SIDE) + b"\x01\x01\x11\0"
    coarse = b"\xff\xc4\0\x14\0\x01" + bytes(15) + b"\0"
    runs = b"\xff\xc4\0\x14\x10\x01" + bytes(15) + b"\xe0"
    first = b"\xff\xda\0\x08\x01\x01\0\0\0\0" + bytes(blocks // 8 + 1)
    bits = ("0" + "1" * 14) * (blocks // 32_767 + 1)
    ones = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    empty = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + ones.replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + table + frame + coarse + runs + first + empty * (count - 1) + b"\xff\xd9"


def jpeg_and_a_film():
    """As phones write it: 200 MB of something else after the image."""
    small = io.BytesIO()
    PIL.Image.new("RGB", [100, 100]).save(small, "JPEG")
    return small.getvalue() + np.random.default_rng(0).bytes(200 * 10**6)


def bmp_of_32_bits():
    head = struct.pack("<IHHI", 54 + 4 * SIDE * SIDE, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, -SIDE, 1, 32, 0, 0, 0, 0, 0, 0)
    return b"BM" + head + info + bytes(4 * SIDE * SIDE)


def gif_of_small_blocks():
    return gif(8, 8, b"\x01\0" * 65_000)


def gif_of_blocks_in_turn():
    return gif(8, 8, b"", b"".join(b"\x21\xfe" + b"\x01\0\x02\0\0" * 4 + b"\0" for _ in range(900)))


def gif_of_a_large_canvas():
    start = gif(SIDE, 1, b"")
    one = io.BytesIO()
    PIL.Image.new("P", [1, 1]).save(one, "GIF")
    frame = one.getvalue()
    return start[: start.index(b"\x2c")] + frame[frame.rindex(b"\x2c\0\0\0\0") :]


FILES = {
    "PNG": (
        honest_png,
        {
            "100 text chunks of 8 MiB": lambda: text_chunks(100),
            "1,000 text chunks of 8 MiB": lambda: text_chunks(1000),
            "profile and unknown chunks": png_with_a_profile,
            "8,000 chunks in turn": png_of_chunks_in_turn,
            "7,000 chunks of pixels in turn": png_of_pixel_chunks_in_turn,
            "2 million empty chunks": png_of_most_chunks,
            "300 MB after the pixels": png_with_pixels_too_many,
            "interlaced, 64 bits a pixel": png_interlaced_of_64_bits,
        },
    ),
    "JPEG": (
        honest_jpeg,
        {
            "100 scans": lambda: jpeg_of_scans(100),
            "1,000 scans": lambda: jpeg_of_scans(1000),
            "200 MB after the image": jpeg_and_a_film,
        },
    ),
    "BMP": (honest_bmp, {"32 bits a pixel": bmp_of_32_bits}),
    "GIF": (
        honest_gif,
        {
            "65,000 blocks of a byte": gif_of_small_blocks,
            "8,000 blocks in turn": gif_of_blocks_in_turn,
            "pixel on the largest canvas": gif_of_a_large_canvas,
        },
    ),
}


def measure(format_name, name):
    """(bytes, whether it is decoded, CPU seconds, MiB at most beyond what the process has)."""
    honest, hostile = FILES[format_name]
    contents = (hostile[name] if name else honest)()
    decode = tf.function(lambda files: decoding.decode_views(files, *SIZES))
    small = io.BytesIO()
    PIL.Image.new("RGB", [8, 8]).save(small, format_name)
    decode(tf.constant([small.getvalue()]))
    files = tf.constant([contents])
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    memory, began = machine.memory_mib("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    valid = bool(decode(files)[1][0])
    ended = resource.getrusage(resource.RUSAGE_SELF)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    return len(contents), valid, seconds, machine.memory_mib() - memory


class Measured(NamedTuple):
    """What decoding a file took."""

    format: str
    name: str
    bytes: int
    valid: bool  # whether it is decoded
    seconds: float  # of the CPU
    mib: float  # at most beyond what the process has
    is_over: bool  # TIMES what the largest honest image of the format takes


def measured():
    """Yields the `Measured` of each file, the largest honest one of each format first."""
    for format_name, (_, hostile) in FILES.items():
        most = None
        for name in (None, *hostile):
            size, valid, seconds, mib = machine.apart(measure, format_name, name)
            most = most or (TIMES * seconds, TIMES * mib)
            is_over = seconds > most[0] or mib > most[1]
            label = name or "largest honest"
            yield Measured(format_name, label, size, valid, seconds, mib, is_over)


def main(_):
    print(f"{machine.describe(machine.hardware())}, commit {machine.commit()}")
    print("| format | file | bytes | decoded | CPU s | MiB |\n|---|---|---|---|---|---|")
    over = []
    for row in measured():
        decoded = "yes" if row.valid else "refused"
        print(
            f"| {row.format} | {row.name} | {row.bytes:,} | {decoded} | {row.seconds:.2f} | "
            f"{row.mib:.0f} |",
            flush=True,
        )
        if row.is_over:
            over.append(f"{row.format}, {row.name}")
    if over:
        sys.exit(f"over {TIMES} times the largest honest image: {'; '.join(over)}")
    print(f"None takes over {TIMES} times what the largest honest image of its format takes.")


if __name__ == "__main__":
    commands.run(main)
