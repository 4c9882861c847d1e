"""How fast an audit reads a rollout log, how much memory it takes, and whether both grow with the log alone.

    python benchmarks/audit_stream.py [--audit rewards] [--rows 100000 300000 1000000] [--ids] [--parquet] [--json]

Logs of attempts of 200 tokens each (some 1,100 signs of text; 8 attempts at each prompt, 512 in each step) are written to a temporary
folder, and the command `tutelage audit NAME LOG` runs on each in a process of its own. Targets on two cores: a million rows in 60 s and
1 GB, and time that grows no faster than the log. The peer is `json.loads` of every line of the same file, in a process of its own too:
what reading costs whoever audits. With --ids each row carries its 200 token ids as well, not their number alone.

The target is judged by the processor's time, which is the wall's where nothing else runs: an audit has one thread. Memory is the peak of
the process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

WORDS = ("so", "we", "add", "the", "two", "and", "carry", "one", "then", "check", "that", "it", "holds", "for", "each", "part", "of")
MILLION, TARGET_SECONDS, TARGET_BYTES = 1_000_000, 60.0, 1e9
STEP, GROUP, TOKENS, PROMPTS = 512, 8, 200, 20_000
PEER = "import json, sys\nfor line in open(sys.argv[1], 'rb'):\n    json.loads(line)\n"


def write(path: Path, rows: int, *, ids: bool, seed: int = 0) -> None:
    """Stream a log of a learning policy to `path`; every text differs."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 250)) for _ in range(400)]
    tokens = [json.dumps(rng.integers(0, 150_000, TOKENS).tolist()) if ids else str(TOKENS - i % 40) for i in range(50)]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, STEP):
            step, share = start // STEP, start / rows
            size = min(STEP, rows - start)
            solved = (rng.random(size) < 0.3 + 0.4 * share).tolist()
            pick = rng.integers(0, len(texts), size).tolist()
            prompts = np.repeat(rng.integers(0, PROMPTS, STEP // GROUP), GROUP).tolist()
            file.write("".join(_line(step, b, prompts[b], texts[pick[b]], tokens[b % 50], solved[b]) for b in range(size)))


def _line(step: int, b: int, prompt: int, text: str, tokens: str, solved: bool) -> str:
    return (
        f'{{"step": {step}, "prompt_id": "{prompt}", "completion": "attempt {step} {b}: {text} \\\\boxed{{{b % 7}}}", '
        f'"reward": {float(solved)}, "solved": {float(solved)}, "tokens": {tokens}, "source": "part {prompt % 4}"}}\n'
    )


def write_tasks(folder: Path) -> Path:
    """The tasks of the log, for an audit that reads them beside it."""
    path = folder / "tasks.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for prompt in range(PROMPTS):
            file.write(
                json.dumps({"id": str(prompt), "prompt": f"What is {prompt} + {prompt % 7}?", "answer": str(prompt + prompt % 7)}) + "\n"
            )
    return path


def to_parquet(path: Path) -> Path:
    """The same log as Parquet, beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, writer = path.with_suffix(".parquet"), None
    with path.open("rb") as lines:
        while batch := [json.loads(line) for line, _ in zip(lines, range(20_000), strict=False)]:
            table = pa.Table.from_pylist(batch)
            writer = writer or pq.ParquetWriter(out, table.schema)
            writer.write_table(table)
    assert writer is not None
    writer.close()
    return out


def measure(command: list[str]) -> dict[str, float]:
    """Wall seconds, processor seconds and peak bytes of a command."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"wall": time.perf_counter() - began, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024.0}


def run(audit: str, rows: int, *, ids: bool, parquet: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        write(log, rows, ids=ids)
        peer = measure([sys.executable, "-c", PEER, str(log)])
        size = log.stat().st_size
        subject = to_parquet(log) if parquet else log
        arguments = [str(subject)] if audit != "poison" else [str(write_tasks(log.parent)), "--log", str(subject), "--key", "id"]
        found = measure([sys.executable, "-m", "tutelage.cli", "audit", audit, *arguments, "--json"])
    return {"rows": rows, "bytes": size, **found, "peer": peer["cpu"], "ratio": found["cpu"] / peer["cpu"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audit", default="rewards", help="an audit that reads a rollout log: rewards or poison")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--ids", action="store_true", help="rows carry token ids")
    parser.add_argument("--parquet", action="store_true", help="audit the log as Parquet")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = []
    for rows in given.rows:
        results.append(run(given.audit, rows, ids=given.ids, parquet=given.parquet))
        one = results[-1]
        if not given.json:
            print(
                f"{rows:>9,} rows  {one['bytes'] / 1e9:5.2f} GB  wall {one['wall']:6.1f} s  cpu {one['cpu']:6.1f} s  "
                f"{one['ratio']:4.2f} x json.loads  peak {one['peak'] / 1e6:5.0f} MB",
                flush=True,
            )
    first, last = results[0], results[-1]
    growth = (last["cpu"] / first["cpu"]) / (last["rows"] / first["rows"])
    judged = last["rows"] >= MILLION
    met = judged and last["cpu"] < TARGET_SECONDS * last["rows"] / MILLION and last["peak"] < TARGET_BYTES
    if given.json:
        print(json.dumps({"results": results, "growth": growth, "met": met if judged else None}))
    else:
        said = "met" if met else "MISSED" if judged else "not judged below a million rows"
        print(f"time grows {growth:.2f} times as fast as the log; target {said}")


if __name__ == "__main__":
    main()
