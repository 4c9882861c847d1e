"""`tutelage edit` against the plain reading and writing of the same bytes, against its matrix products, and against mergekit.

    python benchmarks/edit_io.py [--gigabytes 2] [--repeats 3] [--folder DIR] [--mergekit .venv-bench] [--json]

Three bfloat16 checkpoints in shards, with the names of a stock Llama, are made once in DIR (a temporary folder there; about eight times
--gigabytes of disk). Commands run whole, as a user types them, on one thread, each next to its reference, in turn:

    diff, merge (linear), apply (dense)   against a process that reads the same files and writes as many bytes, fsync included
    apply of a low-rank pack              against its matrix products alone, in the float64 that makes them equal on every machine
    merge (linear, TIES)                  against `mergekit-yaml` on the same files, with --mergekit ENVIRONMENT (made on first use)

Every ratio is the median over pairs of (reference / edit), so 1 is the speed of the reference and more is faster; the least and greatest
follow. `cpu` is the same ratio of processor seconds, which a busy machine and a slow disk leave alone. `peak_MB` is the resident memory of
the command, to be compared with `allowed_MB`: 1.5 times the largest tensor for each model read, and 500 MB. With --folder on a file
system in memory the disk drops out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

BUFFER = 1 << 19
VOCABULARY, HIDDEN = 32000, 2048
SMALL = (512, 256)  # vocabulary and width of the checkpoints in float32
BYTES, WORDS = {"BF16": 2, "F32": 4}, {"BF16": "bfloat16", "F32": "float32"}
ONE_THREAD = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"), "HF_HUB_OFFLINE": "1"}
EDIT = [sys.executable, "-m", "tutelage.cli", "edit"]


# Checkpoints -----------------------------------------------------------------------------------------------------------------------------


def layer(width: int) -> dict[str, tuple[int, ...]]:
    wide = width * 11 // 4
    return {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 4, width), "self_attn.v_proj": (width // 4, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip


def shapes(gigabytes: float, vocabulary: int, width: int) -> dict[str, tuple[int, ...]]:
    """As many layers as make up the size in bfloat16."""
    ends = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    one = sum(2 * _size(shape) for shape in layer(width).values())
    count = max(1, -(-int(gigabytes * 1e9 - 4 * vocabulary * width) // one))
    return ends | {f"model.layers.{i}.{name}.weight": shape for i in range(count) for name, shape in layer(width).items()}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def checkpoints(
    folder: Path, gigabytes: float, vocabulary: int = VOCABULARY, width: int = HIDDEN, dtype: str = "BF16"
) -> tuple[list[Path], int]:
    """A base and two that were moved a little from it, every element of every tensor; and the bytes of the largest tensor."""
    table, item = shapes(gigabytes, vocabulary, width), BYTES[dtype]
    shards: list[list[str]] = [[]]
    for name, shape in table.items():
        if shards[-1] and sum(item * _size(table[n]) for n in shards[-1]) + item * _size(shape) > gigabytes * 1e9 / 4:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    paths = [folder / name for name in ("base", "one", "two")]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": WORDS[dtype], "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": width * 11 // 4, "num_hidden_layers": len(table) // len(layer(width)), "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256, "tie_word_embeddings": False,
    }  # fmt: skip
    total = sum(item * _size(shape) for shape in table.values())
    index = {"metadata": {"total_size": total}, "weight_map": {n: file for file, names in zip(files, shards, strict=True) for n in names}}
    for path in paths:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, names in zip(files, shards, strict=True):
        _write_shard([path / file for path in paths], {name: table[name] for name in names}, dtype)
    return paths, max(item * _size(shape) for shape in table.values())


def _write_shard(files: list[Path], table: dict[str, tuple[int, ...]], dtype: str) -> None:
    import numpy as np

    from tutelage.edits._dtypes import decode, encode
    from tutelage.edits._safetensors import build_header, write_header

    with ExitStack() as stack:
        base, *others = [stack.enter_context(file.open("wb")) for file in files]
        for out in (base, *others):
            write_header(
                out, build_header([(n, dtype, shape, BYTES[dtype] * _size(shape)) for n, shape in table.items()], {"format": "pt"})
            )
        for name, shape in table.items():
            rng = np.random.default_rng(list(name.encode()))
            stored = encode(rng.standard_normal(_size(shape), np.float32) * np.float32(0.02), dtype)
            base.write(stored.data.cast("B"))
            for out in others:
                moved = decode(stored, dtype) + rng.standard_normal(stored.size, np.float32) * np.float32(1e-3)
                out.write(encode(moved, dtype).data.cast("B"))


def files_of(*paths: Path) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]


# References ------------------------------------------------------------------------------------------------------------------------------


def plain(files: list[str], out: str, size: int) -> None:
    """Read `files` and write `size` bytes, a buffer at a time and in step, then fsync: an edit without the edit."""
    total, got, written, view = sum(os.path.getsize(file) for file in files), 0, 0, memoryview(bytearray(BUFFER))
    with open(out, "xb", buffering=0) as target:
        for file in files:
            with open(file, "rb", buffering=0) as source:
                while count := source.readinto(view):
                    got += count
                    while written < size * got // total:
                        written += target.write(view[: min(BUFFER, size * got // total - written)])
        os.fsync(target.fileno())


def products(pack: str) -> dict[str, float]:
    """Seconds of the matrix products of a pack: as they are made, in float64 of rounded factors; and plainly, in float32 (`plain`)."""
    import numpy as np

    from tutelage.edits.packs.low_rank import exact_product
    from tutelage.edits.packs.pack import SkillPack

    opened, spent = SkillPack(pack), {"seconds": 0.0, "cpu": 0.0, "plain": 0.0, "plain_cpu": 0.0, "peak": 0.0}
    for name in opened.names:
        rank, shape = sum(count for _, count in opened.code(name).meta["groups"]), opened.code(name).rows_columns
        rng = np.random.default_rng(0)
        left, right = rng.standard_normal((shape[0], rank), np.float32), rng.standard_normal((rank, shape[1]), np.float32)
        for wall, cpu, multiply in (("seconds", "cpu", exact_product), ("plain", "plain_cpu", np.matmul)):
            start, used = time.perf_counter(), time.process_time()
            multiply(left, right)
            spent[wall] += time.perf_counter() - start
            spent[cpu] += time.process_time() - used
    return spent


# Measuring -------------------------------------------------------------------------------------------------------------------------------


def measured(command: list[Any], out: Path) -> dict[str, float]:
    """Wall seconds, processor seconds and peak megabytes of a command; what it wrote at `out` before is removed first."""
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], env=ONE_THREAD, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{said.read().decode()[-3000:]}")
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


def pairs(name: str, edit: Callable[[], dict[str, float]], reference: Callable[[], dict[str, float]], repeats: int) -> dict[str, Any]:
    """The ratio of the reference to the edit over interleaved pairs."""
    runs = [(reference(), edit()) for _ in range(repeats)]
    ratio = sorted(r["seconds"] / e["seconds"] for r, e in runs)
    result = {
        "ratio": round(statistics.median(ratio), 3), "least": round(ratio[0], 3), "greatest": round(ratio[-1], 3),
        "cpu": round(statistics.median(r["cpu"] / e["cpu"] for r, e in runs), 3),
        "edit_s": round(statistics.median(e["seconds"] for _, e in runs), 2),
        "reference_s": round(statistics.median(r["seconds"] for r, _ in runs), 2),
        "edit_cpu_s": round(statistics.median(e["cpu"] for _, e in runs), 2),
        "peak_MB": round(max(e["peak"] for _, e in runs) / 1e6), "reference_peak_MB": round(max(r["peak"] for r, _ in runs) / 1e6),
    }  # fmt: skip
    print(name, result, file=sys.stderr, flush=True)
    return result


def against_io(folder: Path, models: list[Path], largest: int, repeats: int) -> dict[str, Any]:
    base, one, two = models
    vector, result = folder / "vector.safetensors", {}
    (folder / "linear.yaml").write_text(recipe("linear", models))
    commands: dict[str, tuple[list[Any], list[Path], Path]] = {
        "diff": (["diff", base, one, "-o", vector], [base, one], vector),
        "merge": (["merge", folder / "linear.yaml", "-o", folder / "merged"], [one, two], folder / "merged"),
        "apply": (["apply", base, vector, "-o", folder / "applied"], [base, vector], folder / "applied"),
    }
    for name, (arguments, reads, out) in commands.items():
        measured([*EDIT, *arguments], out)  # warms the cache of files, and says how much is written
        size, other = sum(f.stat().st_size for f in files_of(out)), folder / "plain"
        bare = [sys.executable, __file__, "--plain", json.dumps([[str(f) for f in files_of(*reads)], str(other), size])]
        result[name] = pairs(name, partial(measured, [*EDIT, *arguments], out), partial(measured, bare, other), repeats)
        result[name]["allowed_MB"] = round((1.5 * largest * len(reads) + 500e6) / 1e6)
        other.unlink()
        if name != "diff":
            shutil.rmtree(out)
    return result


def against_products(folder: Path, models: list[Path], largest: int, repeats: int, rank: int) -> dict[str, Any]:
    pack, out, spent = folder / "pack.safetensors", folder / "unpacked", {"plain_cpu": 0.0}
    rules = {"tensors": [{"match": "*_proj.weight", "operator": "svd_delta", "rank": rank, "bits": 16}, {"match": "*", "operator": "skip"}]}
    (folder / "pack.yaml").write_text(json.dumps(rules))
    measured([*EDIT, "pack", models[0], models[1], "-o", pack, "--recipe", folder / "pack.yaml"], pack)

    def multiply() -> dict[str, float]:
        command = [sys.executable, __file__, "--products", str(pack)]
        spent.update(json.loads(subprocess.run(command, env=ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True).stdout))
        return dict(spent)

    result = pairs(f"apply_rank_{rank}", partial(measured, [*EDIT, "apply", models[0], pack, "-o", out], out), multiply, repeats)
    shutil.rmtree(out)
    result |= {"allowed_MB": round((1.5 * 2 * largest + 500e6) / 1e6), "float32_products_s": round(spent["plain_cpu"], 2)}
    return {f"apply_rank_{rank}": result}


def recipe(method: str, models: list[Path], dtype: str = "BF16") -> str:
    base, *others = models
    table: dict[str, Any] = {"merge_method": method, "dtype": WORDS[dtype], "models": [{"model": str(m)} for m in others]}
    for number, entry in enumerate(table["models"]):
        entry["parameters"] = {"weight": [0.25, 0.75][number]} | ({"density": 0.5} if method == "ties" else {})
    return json.dumps(table | ({"base_model": str(base), "parameters": {"normalize": True}} if method == "ties" else {}))


# mergekit --------------------------------------------------------------------------------------------------------------------------------


def against_mergekit(environment: Path, folder: Path, models: list[Path], repeats: int) -> dict[str, Any]:
    from edit_pack import mergekit

    found = mergekit(environment.absolute())
    result: dict[str, Any] = {}
    for method in ("linear", "ties") if found else ():
        path, ours, theirs = folder / f"{method}.yaml", folder / "ours", folder / "theirs"
        path.write_text(recipe(method, models))
        command = [found.parent / "mergekit-yaml", path, theirs, "--out-shard-size", "600M", "--no-copy-tokenizer"]
        name, edit = f"{method}_against_mergekit", partial(measured, [*EDIT, "merge", path, "-o", ours], ours)
        result[name] = pairs(name, edit, partial(measured, command, theirs), repeats) | agreement(ours, theirs)
        shutil.rmtree(ours)
        shutil.rmtree(theirs)
        (folder / "exact").mkdir()
        exact, _ = checkpoints(folder / "exact", 0.01, *SMALL, "F32")
        path.write_text(recipe(method, exact, "F32"))
        edit(), measured(command, theirs)
        result[name] |= {f"{key}_float32": value for key, value in agreement(ours, theirs).items()}
        for folder_ in (ours, theirs, folder / "exact"):
            shutil.rmtree(folder_)
        print(name, result[name], file=sys.stderr, flush=True)
    return result


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """How far two checkpoints lie apart: the share of elements that differ, and the largest difference."""
    import numpy as np

    from tutelage.edits.store import WeightStore

    one, other = WeightStore(ours), WeightStore(theirs)
    assert set(one.names) == set(other.names)
    differ, total, largest = 0, 0, 0.0
    for name in one.names:
        for x, y in zip(one.numbers(name), other.numbers(name), strict=True):
            differ, total = differ + int(np.count_nonzero(x != y)), total + x.size
            largest = max(largest, float(np.abs(x - y).max(initial=0)))
    return {"share_that_differs": differ / total, "largest_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    parser.add_argument("--mergekit", type=Path, help="an environment with mergekit, made if it is not there")
    parser.add_argument("--only", nargs="+", choices=["io", "products", "mergekit"], default=["io", "products", "mergekit"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    parser.add_argument("--products", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        paths, largest = checkpoints(options.make, options.gigabytes)
        print(json.dumps([[str(path) for path in paths], largest]))
        return
    if options.plain:
        plain(*json.loads(options.plain))
        return
    if options.products:
        print(json.dumps(products(options.products)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        making = [sys.executable, __file__, "--gigabytes", options.gigabytes, "--make", name]  # apart: a child's peak includes its parent's
        models, largest = json.loads(subprocess.run([str(part) for part in making], stdout=subprocess.PIPE, check=True).stdout)
        models = [Path(model) for model in models]
        size = sum(file.stat().st_size for file in files_of(models[0]))
        result: dict[str, Any] = {"gigabytes": round(size / 1e9, 2), "repeats": options.repeats}
        if "io" in options.only:
            result |= against_io(Path(name), models, largest, options.repeats)
        if "products" in options.only:
            result |= against_products(Path(name), models, largest, options.repeats, options.rank)
        if "mergekit" in options.only and options.mergekit:
            result |= against_mergekit(options.mergekit, Path(name), models, options.repeats)
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{key:24s} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
