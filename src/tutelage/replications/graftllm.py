"""GraftLLM (arXiv 2505.18502): a skill learned by full fine-tuning, kept in a module-aware pack of an eighth of its bytes.

**Claim.** At 1/8 of the bytes of the 16-bit difference, a module-aware pack keeps more of the new skill than a uniform truncated SVD and
than uniform rounding of the same measured bytes.

**Set-up.** The parallel-answers student (width 64) is taught to sort digits (n = 3 ... 7), then fine-tuned in full to reverse symbols of
a second alphabet: the new skill, which costs it the old one. The difference is packed at a budget of bytes, added to the base, and
measured. Primary metric: the kept share of the new skill, (accuracy with the pack - base) / (tuned - base), sampled accuracy on held-out
inputs. Seeds 0 to 9. Fixed before the first full run. Bytes are those of the tensors in the file; names and fingerprints, the same in
every arm, would outweigh so small a student, and are left out.

**Arms and controls.** `pack`: embeddings, positions and head pruned, attention and MLP matrices as SVDs in mixed precision, norms and
biases dense; the budget solver sets every rank, bit width and share. `best`: all operators compete for each tensor. `svd`: the same share
of the rank for every matrix, factors in 16 bits. `rounding`: one bit width and group size for all. `pruning`: one share for all. Each of
these three takes, of all its settings that fit, the one with the least reconstruction error. `svd_solved`, `rounding_solved` and
`pruning_solved` give each operator the budget solver, tensor by tensor, to tell what the solver does from what the operators do. Two bits
and their grids do not fit the budget, one bit is useless: `rounding_2_bits` takes them all the same, with a quarter more bytes. `_half`:
at 1/16. `full` is the tuned student. `forgetting_loaded` is what the old skill loses while the pack is on, `forgetting_unloaded` after it
was taken off again (0 in every bit, or the library is broken).

**Departures from the paper.** A miniature student instead of Llama-3.1-8B; supervised answers instead of a larger model's; no calibration
(weights are rounded to nearest). LoRA trained at the same bytes, and several packs, are `graftllm-fusion`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.edits.packs.build import pack
from tutelage.edits.packs.low_rank import energy_rank, squared_singular_values
from tutelage.edits.packs.rules import Rules, parse_rules
from tutelage.edits.store import WeightStore
from tutelage.errors import missing_extra
from tutelage.registry import edits, replications
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

if TYPE_CHECKING:
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks


@dataclass(frozen=True)
class Scale:
    """Supervised steps on the old and the new skill, tasks of each length for training and evaluation; every how-manieth uniform setting
    is tried."""

    old_steps: int = 400
    new_steps: int = 300
    lr: float = 1e-3
    batch: int = 64
    width: int = 64
    per_arm: int = 4096
    held_out: int = 256
    every: int = 1


FULL = Scale()
SMOKE = Scale(old_steps=12, new_steps=12, width=16, per_arm=64, held_out=8, every=9)
LENGTHS = range(3, 8)
EIGHTH = 1 / 16  # of the student's float32 bytes: 1/8 of 16-bit ones
MODULES: list[dict[str, Any]] = [
    {"match": "embed.weight", "operator": "sparse_delta"},
    {"match": "position_TD", "operator": "sparse_delta"},
    {"match": "head.weight", "operator": "sparse_delta"},
    {"match": "blocks.*", "operator": "svd_delta"},
    {"match": "*", "operator": "dense_delta"},
]
Candidates = Callable[[WeightStore], list[Rules]]


def _rules(*tensors: dict[str, Any], budget: float | None = None) -> Rules:
    return parse_rules({"tensors": list(tensors), **({} if budget is None else {"budget": budget})})


def _matrices(store: WeightStore) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in store.tensors.items() if len(info.shape) == 2}


def uniform_svd(store: WeightStore) -> list[Rules]:
    """The same share of the full rank for every matrix, factors in 16 bits."""
    rest = {"match": "*", "operator": "dense_delta"}
    return [
        _rules(
            *({"match": n, "operator": "svd_delta", "rank": max(1, int(share * min(s))), "bits": 16} for n, s in _matrices(store).items()),
            rest,
        )
        for share in np.arange(2, 65) / 128
    ]


def uniform_rounding(store: WeightStore) -> list[Rules]:
    """One bit width and one group size for every matrix."""
    groups = (8, 16, 32, 64)
    return [_rules({"match": "*", "operator": "quantized_delta", "bits": b, "group": g}) for b in range(1, 7) for g in groups]


def two_bits(store: WeightStore) -> list[Rules]:
    """Two bits a weight, the least that rounding needs to be of use."""
    return [_rules({"match": "*", "operator": "quantized_delta", "bits": 2, "group": 64})]


def uniform_pruning(store: WeightStore) -> list[Rules]:
    """One share of entries for every tensor."""
    return [
        _rules({"match": "*", "operator": "sparse_delta", "keep": float(k), "bits": b}) for k in np.arange(0.05, 0.3, 0.01) for b in (4, 6)
    ]


def _bytes(store: WeightStore, rules: Rules) -> int:
    """Bytes that rules take where their operators' sizes are known in advance."""
    chosen = rules.assign(list(store.tensors.values()))
    return sum(edits.build(rule.operators[0], **rule.settings).most_bytes(store.tensors[n].shape) for n, rule in chosen.items())


def _pack_best(base: WeightStore, tuned: WeightStore, folder: Path, candidates: list[Rules], budget: float) -> Path:
    """The pack of least error among those that fit; the folder itself where none does."""
    most, best = budget * base.nbytes, (np.inf, folder)
    for i, rules in enumerate(candidates):
        path = folder / f"{i}.safetensors"
        record = pack(base, tuned, path, rules=rules, count_manifest=False)
        if record["data_bytes"] <= most and record["error"] < best[0]:
            best = record["error"], path
    return best[1]


def _fitting(store: WeightStore, candidates: list[Rules], budget: float) -> list[Rules]:
    """Candidates that may fit: the sizes of SVD and rounding are known, pruning's and a solver's show when they are packed."""
    known = [rules for rules in candidates if rules.budget is None and not any("sparse_delta" in r.operators for r in rules.rules)]
    return [rules for rules in candidates if rules not in known or _bytes(store, rules) <= budget * store.nbytes]


# The student -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classroom:
    """What all arms of a seed share: the student before and after, on disk and in memory, and held-out tasks of both skills."""

    folder: tempfile.TemporaryDirectory[str]
    base: WeightStore
    tuned: WeightStore
    student: ParallelAnswers
    old: SortingTasks
    new: SortingTasks
    accuracy: dict[str, float]


def _reversing(tasks: SortingTasks) -> SortingTasks:
    """The same inputs in the second alphabet, to be written backwards."""
    import torch

    from tutelage.students.parallel_answers import DIGITS, SortingTasks

    length_N1 = tasks.mask_NT.sum(dim=1, keepdim=True)
    place_NT = (length_N1 - 1 - torch.arange(tasks.token_NT.shape[1])).clamp(min=0)
    answer_NT = torch.where(tasks.mask_NT, tasks.token_NT.gather(1, place_NT), 0)
    token_NT = torch.where(tasks.mask_NT, tasks.token_NT + DIGITS, tasks.token_NT)
    return SortingTasks(token_NT, answer_NT, tasks.mask_NT, tasks.arm_N, tasks.arm_names)


@lru_cache(maxsize=1)
def _classroom(seed: int, size: Scale) -> Classroom:
    try:
        import torch
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "lm") from None

    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks, warm_start

    torch.set_num_threads(1)
    data, held, teach = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    old, new = (
        SortingTasks.draw(data, per_arm=size.per_arm, lengths=LENGTHS),
        SortingTasks.draw(data, per_arm=size.per_arm, lengths=LENGTHS),
    )
    old_held, new_held = (SortingTasks.draw(held, per_arm=size.held_out, lengths=LENGTHS) for _ in range(2))
    student = ParallelAnswers(old, seed=int(teach.integers(2**31)), width=size.width)
    warm_start(student, old, rng=teach, steps=size.old_steps, batch=size.batch, lr=size.lr)
    tuned = copy.deepcopy(student)
    warm_start(tuned, _reversing(new), rng=teach, steps=size.new_steps, batch=size.batch, lr=size.lr)
    folder = tempfile.TemporaryDirectory(prefix="graftllm-")
    stores = []
    for name, net in (("base", student), ("tuned", tuned)):
        path = Path(folder.name) / f"{name}.safetensors"
        save_file({n: np.ascontiguousarray(t.detach().numpy()) for n, t in net.state_dict().items()}, path)
        stores.append(WeightStore(path))
    tasks = {"old": old_held, "new": _reversing(new_held)}
    accuracy = {f"{w}_{n}": _accuracy(net, tasks[n]) for w, net in (("base", student), ("tuned", tuned)) for n in tasks}
    return Classroom(folder, stores[0], stores[1], student, tasks["old"], tasks["new"], accuracy)


def _accuracy(student: ParallelAnswers, tasks: SortingTasks) -> float:
    from tutelage.students.parallel_answers import success_rate

    return float(success_rate(student, tasks).mean())


def _rank_of_ninety(room: Classroom) -> float:
    """Mean share of the directions of a matrix that hold 90 % of its difference's energy."""
    shares = []
    for name, shape in _matrices(room.base).items():
        before, after = (next(s.numbers(name, None)).reshape(shape) for s in (room.base, room.tuned))
        shares.append(energy_rank(squared_singular_values(after - before), 0.9) / min(shape))
    return float(np.mean(shares))


# The arms --------------------------------------------------------------------------------------------------------------------------------


def keep(seed: int, size: Scale, candidates: Candidates, budget: float) -> Cell:
    """Pack the skill of a seed's student, load the pack, and measure both skills with it and after it is gone."""
    from tutelage.model_edits.routing import PackRack

    room = _classroom(seed, size)
    with tempfile.TemporaryDirectory(prefix="graftllm-") as folder:
        path = _pack_best(room.base, room.tuned, Path(folder), _fitting(room.base, candidates(room.base)[:: size.every], budget), budget)
        rack = PackRack(room.student, {"new": path} if path.is_file() else {})
        data = rack.packs["new"].sizes["data"] if rack.packs else 0  # type: ignore[attr-defined]
        with rack.on(*rack.packs):
            new, old = _accuracy(room.student, room.new), _accuracy(room.student, room.old)
    unloaded, before = _accuracy(room.student, room.old), room.accuracy
    return {
        "score": {
            "kept": (new - before["base_new"]) / max(before["tuned_new"] - before["base_new"], 1e-9),
            "new": new,
            "old": old,
            "forgetting_loaded": before["base_old"] - old,
            "forgetting_unloaded": before["base_old"] - unloaded,
            "share_of_16_bit": 2 * data / room.base.nbytes,
        }
    }


def _solved(*tensors: dict[str, Any], budget: float) -> Candidates:
    return lambda store: [_rules(*tensors, budget=budget)]


def _arm(about: str, candidates: Candidates, budget: float = EIGHTH, **settings: Any) -> Arm:
    return Arm(
        run=lambda seed, smoke: keep(seed, SMOKE if smoke else FULL, candidates, budget),
        about=about,
        settings={"share_of_16_bit": 2 * budget, **settings},
    )


def _full() -> Arm:
    def run(seed: int, smoke: bool) -> Cell:
        room = _classroom(seed, SMOKE if smoke else FULL)
        a = room.accuracy
        return {
            "score": {"kept": 1.0, "new": a["tuned_new"], "old": a["tuned_old"], "forgetting_loaded": a["base_old"] - a["tuned_old"],
                      "base_new": a["base_new"], "base_old": a["base_old"], "rank_of_ninety": _rank_of_ninety(room)}
        }  # fmt: skip

    return Arm(run=run, about="the tuned student, nothing compressed")


ANY: dict[str, Any] = {"match": "*", "operator": ["svd_delta", "quantized_delta", "sparse_delta", "dense_delta"]}


@replications.register("graftllm")
def graftllm() -> Replication:
    """At 1/8 of the 16-bit difference's bytes, a module-aware pack keeps more of a new skill than uniform SVD or uniform rounding.

    See the module for set-up, controls and departures.
    """
    half = EIGHTH / 2
    solved = {name: {"match": "*", "operator": name} for name in ("svd_delta", "quantized_delta", "sparse_delta")}
    return Replication(
        paper="arXiv 2505.18502",
        metric="kept",
        metric_about="kept share of the new skill: (accuracy with the pack - base) / (tuned - base), on held-out inputs",
        budget="1/8 (arms called half: 1/16) of the bytes of the difference in 16 bits, as measured in the file, manifest apart",
        settings={**asdict(FULL), "lengths": list(LENGTHS), "modules": MODULES},
        arms={
            "pack": _arm("module-aware recipe, budget solver", _solved(*MODULES, budget=EIGHTH), recipe=MODULES),
            "best": _arm("every operator on every tensor, budget solver", _solved(ANY, budget=EIGHTH), recipe=[ANY]),
            "svd": _arm("uniform truncated SVD, 16-bit factors", uniform_svd),
            "rounding": _arm("uniform rounding", uniform_rounding),
            "rounding_2_bits": _arm("uniform rounding to 2 bits, groups of 64: a quarter over the budget", two_bits, 1.0, bits=2, group=64),
            "pruning": _arm("uniform magnitude pruning", uniform_pruning),
            "svd_solved": _arm("mixed-precision SVD, budget solver", _solved(solved["svd_delta"], budget=EIGHTH)),
            "rounding_solved": _arm("rounding, budget solver", _solved(solved["quantized_delta"], budget=EIGHTH)),
            "pruning_solved": _arm("pruning, budget solver", _solved(solved["sparse_delta"], budget=EIGHTH)),
            "pack_half": _arm("module-aware recipe at 1/16", _solved(*MODULES, budget=half), half, recipe=MODULES),
            "best_half": _arm("every operator at 1/16", _solved(ANY, budget=half), half, recipe=[ANY]),
            "svd_half": _arm("uniform truncated SVD at 1/16", uniform_svd, half),
            "svd_solved_half": _arm("mixed-precision SVD at 1/16", _solved(solved["svd_delta"], budget=half), half),
            "rounding_solved_half": _arm("rounding, budget solver, at 1/16", _solved(solved["quantized_delta"], budget=half), half),
            "full": _full(),
        },
        comparisons=(
            Comparison(method="pack", baseline="svd"),
            Comparison(method="pack", baseline="rounding"),
            Comparison(method="pack", baseline="rounding_2_bits"),
            Comparison(method="pack", baseline="pruning"),
            Comparison(method="pack", baseline="svd_solved"),
            Comparison(method="pack", baseline="rounding_solved"),
            Comparison(method="pack", baseline="pruning_solved"),
            Comparison(method="best", baseline="pack"),
            Comparison(method="pack_half", baseline="svd_half"),
            Comparison(method="pack_half", baseline="svd_solved_half"),
            Comparison(method="pack_half", baseline="rounding_solved_half"),
        ),
    )
