"""How memory and time grow with the rows of a file that is tokenised and packed, on the CPU.

    python -m benchmarks.stream --rows 10000,100000,1000000

Each number of rows is read in a process of its own, from a `.jsonl` of made-up instructions and
responses about as long as Dolly's, none like another; every batch of an epoch is made and dropped.
Memory is the process' peak above what it held before the file was opened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "the of a to and in that is it for on with as was be by at from which or an are this have "
    "not but had they one you were all her she there would their we him been has when who will "
    "more no if out so said what up its about into than them can only other new some could time"
).split()


def write_rows(path: Path, count: int) -> None:
    """A `.jsonl` of so many instructions and responses."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = " ".join(draw.choices(WORDS, k=12))
            answer = " ".join(draw.choices(WORDS, k=min(400, int(draw.lognormvariate(3.8, 0.9)))))
            row = {"instruction": f"{number}: {asked}?", "response": f"{answer}."}
            file.write(json.dumps(row) + "\n")


def read(path: Path, source: str, sequence_length: int) -> dict[str, float]:
    """One epoch of batches of a file, made and dropped."""
    import kerora
    from kerora.data import make_batches

    tokenizer = kerora.from_preset(source, load_weights=False).preprocessor.tokenizer
    began = time.perf_counter()
    batches = make_batches(
        str(path), tokenizer, sequence_length=sequence_length, batch_size=1024 // sequence_length
    )
    first = None
    for _ in batches:
        first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began
    report = batches.report()
    return {
        "rows": report.rows,
        "tokens": report.tokens,
        "fill": report.fill,
        "first_batch_s": first or 0.0,
        "rows_per_second": report.rows / seconds,
        "file_gb": path.stat().st_size / 1e9,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10000,100000,1000000", help="numbers of rows")
    parser.add_argument("--model", default="tiny_gemma", help="whose tokenizer it is")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # for a process of its own
    arguments = parser.parse_args()
    if arguments.file:
        print(json.dumps(read(arguments.file, arguments.model, arguments.sequence_length)))
        return
    print("| rows | file | first batch after | rows a second | fill | memory |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        # A cache of its own: rows that an earlier run tokenised would be found there.
        environment = {**os.environ, "XDG_CACHE_HOME": folder, "KERAS_BACKEND": "jax"}
        for count in map(int, arguments.rows.split(",")):
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count)
            command = [sys.executable, "-m", "benchmarks.stream", *sys.argv[1:], "--file", path]
            answer = subprocess.run(
                command, stdout=subprocess.PIPE, env=environment, text=True, check=True
            ).stdout
            r = json.loads(answer.splitlines()[-1])
            print(
                f"| {r['rows']:,} | {r['file_gb']:.2f} GB | {r['first_batch_s']:.1f} s "
                f"| {r['rows_per_second']:,.0f} | {r['fill']:.1%} | {r['memory_gb']:.2f} GB |",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    main()
