"""Time and peak memory of `metrics.evaluate_codes` at the sizes of the published protocols.

    python -m benchmarks.evaluation

Random embeddings, codes and labels from a fixed seed; each case runs in a process of its own, so
that its peak memory is its own. Prints a Markdown table.
"""

import time
from typing import NamedTuple

import numpy as np

from benchmarks import machine
from hqc_tf import commands, metrics

NUM_BOOKS, NUM_WORDS, WORD_DIM = 8, 16, 16


class Case(NamedTuple):
    num_queries: int
    num_codes: int
    top_k: int
    num_labels: int
    multi_hot: bool


CASES = {
    "cifar10": Case(10_000, 50_000, 1000, 10, multi_hot=False),
    "nuswide": Case(2_100, 193_734, 5000, 21, multi_hot=True),
}


def random_labels(rng: np.random.Generator, count: int, case: Case) -> np.ndarray:
    if case.multi_hot:
        return rng.random((count, case.num_labels)) < 0.1
    return rng.integers(0, case.num_labels, count)


def measure(name: str) -> str:
    """Runs a case and returns its row of the table."""
    case = CASES[name]
    rng = np.random.default_rng(0)
    codebooks = rng.standard_normal((NUM_BOOKS, NUM_WORDS, WORD_DIM), dtype=np.float32)
    codes = rng.integers(0, NUM_WORDS, (case.num_codes, NUM_BOOKS), dtype=np.uint8)
    queries = rng.standard_normal((case.num_queries, NUM_BOOKS * WORD_DIM), dtype=np.float32)
    database_labels = random_labels(rng, case.num_codes, case)
    query_labels = random_labels(rng, case.num_queries, case)
    start = time.perf_counter()
    result = metrics.evaluate_codes(
        codebooks, codes, database_labels, queries, query_labels, case.top_k
    )
    seconds = time.perf_counter() - start
    return (
        f"| {name} | {case.num_queries:,} x {case.num_codes:,} x {NUM_BOOKS} | {case.top_k} "
        f"| {seconds:.1f} | {machine.memory_mib():.0f} | {result.mean_average_precision:.4f} |"
    )


def main(_):
    print(f"{machine.describe(machine.hardware())}\n")
    print("| case | queries x codes x books | top_k | seconds | peak RSS, MiB | mAP |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in CASES:
        print(machine.apart(measure, name), flush=True)


if __name__ == "__main__":
    commands.run(main)
