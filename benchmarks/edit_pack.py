"""`tutelage edit pack` against `mergekit-extract-lora`: the same checkpoints, the same rank, seconds and what is lost.

    python benchmarks/edit_pack.py [--rank 32] [--hidden 1024] [--layers 8] [--environment .venv-bench] [--repeats 3] [--json]

Two bfloat16 checkpoints of a stock Llama (a few hundred MB; the difference is a decaying spectrum plus noise) are made once. mergekit is
installed with pip into an environment of its own, made on first use. Both tools run as whole commands, on one thread, in turn, on the
same files, and approximate every matrix of the layers at one rank: mergekit writes a LoRA adapter in the checkpoint's format, tutelage a
pack with 16-bit factors, and one at half of those bytes in mixed precision. What is lost is sqrt(Σ‖Δ − Δ̂‖² / Σ‖Δ‖²) over those matrices,
read back from what each wrote. Prints the ratio of seconds (mergekit / tutelage: above 1 tutelage is faster) and of errors.
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
import venv
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.edits.packs.pack import SkillPack
from tutelage.edits.store import WeightStore

TORCH = "torch==2.13.0"  # as in constraints.txt; on Linux an index with the CPU build is needed, or pip brings several gigabytes
PATTERNS = ("*_proj.weight",)
ONE_THREAD = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"), "HF_HUB_OFFLINE": "1"}


def mergekit(environment: Path) -> Path | None:
    """The command `mergekit-extract-lora`, installed where it is not there yet; None where pip cannot."""
    command = environment / "bin" / "mergekit-extract-lora"
    if command.exists():
        return command
    print(f"installing mergekit into {environment} ...", file=sys.stderr)
    try:
        venv.create(environment, with_pip=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write(TORCH + "\n")
            constraints.flush()
            pip = [environment / "bin" / "pip", "install", "--quiet", "--constraint", constraints.name, "mergekit"]
            done = subprocess.run(pip, capture_output=True, text=True, timeout=1200)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"skipped: mergekit cannot be installed ({error})", file=sys.stderr)
        return None
    if done.returncode or not command.exists():
        print(f"skipped: mergekit cannot be installed:\n{done.stderr[-1000:]}", file=sys.stderr)
        return None
    return command


def checkpoints(folder: Path, hidden: int, layers: int) -> tuple[Path, Path]:
    """A Llama with random weights, and the same after a step of decaying spectrum and some noise."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )  # fmt: skip
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(8000)}, unk_token="w0")))
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name in ("base", "tuned"):
        if name == "tuned":
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    if key.endswith("_proj.weight"):
                        rank = min(weight.shape) // 4
                        left, right = (
                            torch.randn(weight.shape[0], rank) / torch.arange(1, rank + 1) ** 0.7,
                            torch.randn(rank, weight.shape[1]),
                        )
                        weight += (2e-3 * (left @ right + 0.3 * torch.randn(weight.shape))).to(torch.bfloat16)
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder / "base", folder / "tuned"


def timed(command: list[Any], out: Path) -> float:
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], env=ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def lost(base: Path, tuned: Path, decoded: Any) -> float:
    """The relative error over all matrices of the layers; `decoded(name)` is Δ̂."""
    before, after, error, energy = WeightStore(base), WeightStore(tuned), 0.0, 0.0
    for name in (n for n in before.names if n.endswith("_proj.weight")):
        delta = (next(after.numbers(name, None)) - next(before.numbers(name, None))).reshape(before.tensors[name].shape)
        error += float(np.sum((delta - decoded(name)) ** 2, dtype=np.float64))
        energy += float(np.sum(delta**2, dtype=np.float64))
    return float(np.sqrt(error / energy))


def adapter(path: Path) -> Any:
    """Δ̂ of a LoRA adapter: scale · B A."""
    store, config = WeightStore(path / "adapter_model.safetensors"), json.loads((path / "adapter_config.json").read_text())

    def factor(name: str, side: str) -> Any:
        full = next(n for n in store.names if n.endswith(f"{name.removesuffix('.weight')}.lora_{side}.weight"))
        return next(store.numbers(full, None)).reshape(store.tensors[full].shape)

    def decoded(name: str) -> Any:
        a, b = factor(name, "A"), factor(name, "B")
        module = name.removesuffix(".weight")
        rank = next((r for p, r in config.get("rank_pattern", {}).items() if module.endswith(p)), config["r"])
        alpha = next((x for p, x in config.get("alpha_pattern", {}).items() if module.endswith(p)), config["lora_alpha"])
        return alpha / rank * (b @ a)

    return decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--environment", type=Path, default=Path(".venv-bench"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    command = mergekit(options.environment.absolute())
    if command is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, tuned = checkpoints(folder, options.hidden, options.layers)
        result = compare(command, base, tuned, folder, options.rank, options.repeats)
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{key:32s} {value}" for key, value in result.items()))


def compare(command: Path, base: Path, tuned: Path, folder: Path, rank: int, repeats: int) -> dict[str, Any]:
    rule = {"match": PATTERNS[0], "operator": "svd_delta"}
    skip = {"match": "*", "operator": "skip"}
    size = WeightStore(base)
    matrices = [size.tensors[n] for n in size.names if n.endswith("_proj.weight")]
    half = sum(2 * rank * sum(info.shape) for info in matrices) / 2 / sum(info.nbytes for info in matrices)
    recipes = {"rank": {"tensors": [{**rule, "rank": rank, "bits": 16}, skip]}, "half": {"budget": half, "tensors": [rule, skip]}}
    for name, table in recipes.items():
        (folder / f"{name}.yaml").write_text(json.dumps(table))
    lora = folder / "lora"
    theirs = [command, "--model", tuned, "--base-model", base, "--out-path", lora, "--max-rank", rank]
    theirs += ["--include-regex", ".*_proj$", "--no-distribute-scale"]
    ours = {n: [sys.executable, "-m", "tutelage.cli", "edit", "pack", base, tuned, "-o", folder / f"{n}.safetensors", "--recipe",
                folder / f"{n}.yaml", "--json"] for n in recipes}  # fmt: skip
    seconds: dict[str, list[float]] = {"mergekit": [], "rank": [], "half": []}
    for _ in range(repeats):
        seconds["mergekit"].append(timed(theirs, lora))
        for n in recipes:
            seconds[n].append(timed(ours[n], folder / f"{n}.safetensors"))
    error = {"mergekit": lost(base, tuned, adapter(lora))}
    error |= {n: lost(base, tuned, SkillPack(folder / f"{n}.safetensors").decode) for n in recipes}
    # mergekit also stores embeddings, head and norms in full, which are not compared here
    stored = WeightStore(lora / "adapter_model.safetensors").tensors.items()
    written = {"mergekit": sum(info.nbytes for name, info in stored if ".lora_" in name)}
    written |= {n: (folder / f"{n}.safetensors").stat().st_size for n in recipes}
    middle = {n: statistics.median(values) for n, values in seconds.items()}
    return {
        "checkpoint_MB": round(size.nbytes / 1e6), "rank": rank, "repeats": repeats,
        **{f"seconds_{n}": round(v, 2) for n, v in middle.items()}, **{f"bytes_{n}": v for n, v in written.items()},
        **{f"error_{n}": round(v, 5) for n, v in error.items()},
        "times_faster_at_equal_rank": round(middle["mergekit"] / middle["rank"], 2),
        "times_faster_at_half_the_bytes": round(middle["mergekit"] / middle["half"], 2),
        "error_ratio_at_equal_rank": round(error["rank"] / error["mergekit"], 4),
        "error_ratio_at_half_the_bytes": round(error["half"] / error["mergekit"], 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
