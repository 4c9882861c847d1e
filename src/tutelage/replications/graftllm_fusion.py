"""GraftLLM (arXiv 2505.18502), several skills: packs that are routed, added up, or replaced by merging, LoRA or tuning one after the other.

**Claim.** Two skills kept as packs of an eighth of their bytes do better when each prompt goes to its own pack than when both are added up.

**Set-up.** The parallel-answers student (width 64) is taught to sort digits (n = 3 ... 7), the old skill. From there it is fine-tuned in
full to reverse inputs of five further symbols, and, apart, to write the running sums modulo 5 of five others: two new skills, told apart by
their symbols. Each difference is packed by the module-aware recipe at 1/8 of its 16-bit bytes, as measured, the manifest apart. Primary
metric: the kept share of both new skills, the mean of (accuracy - base) / (tuned - base), sampled accuracy on held-out inputs. Seeds 0 to
9. Fixed before the first full run.

**Arms and controls.** `routed`: each prompt's pack by its label. `routed_learnt`: by the prompt router (logistic regression on mean
embeddings, fitted on 256 other prompts of each skill, the old one sent to the base). `summed`: both packs on. `ties`: the two tuned
students merged (density 0.2), nothing compressed. `sequential`: tuned in full on the first skill, then on the second. `lora`: adapters on
every matrix, trained from the base on each skill for as many steps, factors of 16 bits and a rank that fits the bytes of the packs, by
label; of four learning rates tried on seeds 100 and 101, 1e-3, 3e-3, 1e-2 and 3e-2 (kept 0.19, 0.86, 0.48, 0.04), the best. `forgetting` is
what the old skill loses with what the arm leaves on for its prompts: 0 in every bit for a router by label.

**Departures from the paper.** A miniature student instead of Llama-3.1-8B; supervised answers instead of a larger model's; two skills.
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
from tutelage.edits.packs.rules import parse_rules
from tutelage.edits.store import WeightStore
from tutelage.registry import edits, replications
from tutelage.study.miniature import one_thread, torch_or_raise
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

if TYPE_CHECKING:
    from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks


@dataclass(frozen=True)
class Scale:
    """Supervised steps on the old and on each new skill; tasks of each length for training and for evaluation."""

    old_steps: int = 400
    new_steps: int = 300
    lr: float = 1e-3
    lora_lr: float = 3e-3
    batch: int = 64
    width: int = 64
    per_arm: int = 4096
    held_out: int = 256


FULL = Scale()
SMOKE = Scale(old_steps=12, new_steps=12, width=16, per_arm=64, held_out=16)
LENGTHS = range(3, 8)
EIGHTH = 1 / 16  # of the student's float32 bytes: 1/8 of 16-bit ones
SYMBOLS = 5  # of each new skill, out of the ten of the second alphabet
NEW = ("reverse", "sums")
MODULES: list[dict[str, Any]] = [
    {"match": "embed.weight", "operator": "sparse_delta"},
    {"match": "position_TD", "operator": "sparse_delta"},
    {"match": "head.weight", "operator": "sparse_delta"},
    {"match": "blocks.*", "operator": "svd_delta"},
    {"match": "*", "operator": "dense_delta"},
]


def skill(tasks: SortingTasks, name: str) -> SortingTasks:
    """The same inputs in a skill's own symbols, with its answers."""
    import torch

    from tutelage.students.parallel_answers import DIGITS, SortingTasks

    if name == "sort":
        return tasks
    value_NT = tasks.token_NT % SYMBOLS
    place_NT = (tasks.mask_NT.sum(dim=1, keepdim=True) - 1 - torch.arange(value_NT.shape[1])).clamp(min=0)
    answer_NT = value_NT.gather(1, place_NT) if name == "reverse" else value_NT.cumsum(dim=1) % SYMBOLS
    first = DIGITS + SYMBOLS * NEW.index(name)
    token_NT = torch.where(tasks.mask_NT, value_NT + first, tasks.token_NT)
    return SortingTasks(token_NT, torch.where(tasks.mask_NT, answer_NT, 0), tasks.mask_NT, tasks.arm_N, tasks.arm_names)


def _low_rank(shape: Any, rank: int) -> Any:
    """A parametrisation W + B A with A drawn by torch's generator and B zero; A and B are (rank, columns) and (rows, rank)."""
    import torch

    class LowRank(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.randn(rank, shape[1]) / rank**0.5)
            self.b = torch.nn.Parameter(torch.zeros(shape[0], rank))

        def forward(self, weight: Any) -> Any:
            return weight + self.b @ self.a

    return LowRank()


class Classroom:
    """What all arms of a seed share: the student before and after, on disk and in memory, packs, and held-out tasks of every skill."""

    def __init__(self, seed: int, size: Scale) -> None:
        from tutelage.students.parallel_answers import ParallelAnswers, SortingTasks, warm_start

        data, held, self.teach = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
        self.size = size
        self.taught = {n: skill(SortingTasks.draw(data, per_arm=size.per_arm, lengths=LENGTHS), n) for n in ("sort", *NEW)}
        self.held = {n: skill(SortingTasks.draw(held, per_arm=size.held_out, lengths=LENGTHS), n) for n in ("sort", *NEW)}
        self.base = ParallelAnswers(self.taught["sort"], seed=int(self.teach.integers(2**31)), width=size.width)
        warm_start(self.base, self.taught["sort"], rng=self.teach, steps=size.old_steps, batch=size.batch, lr=size.lr)
        self.tuned = {name: copy.deepcopy(self.base) for name in NEW}
        for name, student in self.tuned.items():
            self.train(student, name)
        self.before = {name: self.accuracy(self.base, name) for name in ("sort", *NEW)}
        self.after = {name: self.accuracy(self.tuned[name], name) for name in NEW}
        self.folder = tempfile.TemporaryDirectory(prefix="graftllm-fusion-")
        base = self.stored(self.base, "base")
        self.packs: dict[str, Path] = {}
        rules = parse_rules({"tensors": MODULES, "budget": EIGHTH})
        for name in NEW:
            self.packs[name] = Path(self.folder.name) / f"{name}-pack.safetensors"
            pack(base, self.stored(self.tuned[name], name), self.packs[name], rules=rules, count_manifest=False)

    def train(self, student: ParallelAnswers, name: str, lr: float | None = None) -> None:
        from tutelage.students.parallel_answers import warm_start

        rng = np.random.default_rng(NEW.index(name))
        warm_start(student, self.taught[name], rng=rng, steps=self.size.new_steps, batch=self.size.batch, lr=lr or self.size.lr)

    def stored(self, student: ParallelAnswers, name: str) -> WeightStore:
        from safetensors.numpy import save_file

        path = Path(self.folder.name) / f"{name}.safetensors"
        save_file({n: np.ascontiguousarray(t.detach().numpy()) for n, t in student.state_dict().items()}, path)
        return WeightStore(path)

    def accuracy(self, student: ParallelAnswers, name: str) -> float:
        from tutelage.students.parallel_answers import success_rate

        return float(success_rate(student, self.held[name]).mean())

    def cell(self, found: dict[str, float], **more: float) -> Cell:
        """found: accuracy on each skill."""
        kept = {name: (found[name] - self.before[name]) / max(self.after[name] - self.before[name], 1e-9) for name in NEW}
        score = {"kept": float(np.mean(list(kept.values()))), **{f"kept_{name}": value for name, value in kept.items()}}
        return {"score": score | {"forgetting": self.before["sort"] - found["sort"]} | more}


@lru_cache(maxsize=1)
def _classroom(seed: int, size: Scale) -> Classroom:
    return Classroom(seed, size)


def routed(room: Classroom) -> Cell:
    from tutelage.model_edits.routing import PackRack

    rack, found = PackRack(room.base, room.packs), {"sort": room.accuracy(room.base, "sort")}
    for name in NEW:
        with rack.on(name):
            found[name] = room.accuracy(room.base, name)
    share = 2 * float(np.mean([p.sizes["data"] for p in rack.packs.values()])) / room.stored(room.base, "base").nbytes  # type: ignore[attr-defined]
    return room.cell(found, share_of_16_bit=share)


def routed_learnt(room: Classroom) -> Cell:
    """Prompts go where the router says; where it abstains or errs, the answers are those of what is then on."""
    import torch

    from tutelage.model_edits.routing import PackRack, PromptRouter

    def features(tasks: SortingTasks, count: int | None) -> Any:
        with torch.no_grad():
            mask_NT1 = tasks.mask_NT[:count].unsqueeze(2)
            return ((room.base.embed(tasks.token_NT[:count]) * mask_NT1).sum(1) / mask_NT1.sum(1)).double().numpy()

    shown = {name: features(room.taught[name], 256) for name in room.taught}
    labels = [None if name == "sort" else name for name in shown for _ in range(len(shown[name]))]
    router = PromptRouter().fit(np.concatenate(list(shown.values())), labels)
    rack, found, right = PackRack(room.base, room.packs), {}, []
    for name, tasks in room.held.items():
        sent = np.array([pack or "" for pack in router(features(tasks, None))])
        solved_N = np.zeros(len(sent))
        for pack_name in set(sent.tolist()):
            with rack.on(*([pack_name] if pack_name else [])):
                one = np.flatnonzero(sent == pack_name)
                solved_N[one] = np.asarray(_by_row(room.base, tasks))[one]
        found[name] = float(solved_N.mean())
        right.append(float((sent == ("" if name == "sort" else name)).mean()))
    return room.cell(found, routed_right=float(np.mean(right)))


def _by_row(student: ParallelAnswers, tasks: SortingTasks) -> Any:
    """The chance of each row's answer to be right."""
    import torch

    from tutelage.students.parallel_answers import log_success

    with torch.no_grad():
        return log_success(student, tasks, np.arange(len(tasks))).exp().numpy()


def summed(room: Classroom) -> Cell:
    from tutelage.model_edits.routing import PackRack

    with PackRack(room.base, room.packs).on(*NEW):
        return room.cell({name: room.accuracy(room.base, name) for name in room.held})


def ties(room: Classroom) -> Cell:
    """The tuned students, merged tensor by tensor."""
    import torch

    merge, merged = edits.get("ties").target, copy.deepcopy(room.base)
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            models = [dict(tuned.named_parameters())[name].detach().numpy() for tuned in room.tuned.values()]
            weight.copy_(torch.from_numpy(merge(weight.numpy(), models)))
    return room.cell({name: room.accuracy(merged, name) for name in room.held})


def sequential(room: Classroom) -> Cell:
    student = copy.deepcopy(room.tuned[NEW[0]])
    room.train(student, NEW[1])
    return room.cell({name: room.accuracy(student, name) for name in room.held})


def lora(room: Classroom) -> Cell:
    """Low-rank adapters of the packs' bytes, one for each skill."""
    import torch
    from torch.nn.utils import parametrize

    matrices = {name: weight for name, weight in room.base.named_parameters() if weight.dim() == 2}
    most = EIGHTH * sum(weight.nbytes for weight in room.base.parameters())
    each = sum(2 * sum(weight.shape) for weight in matrices.values())
    rank, found = max(1, int(most // each)), {"sort": room.accuracy(room.base, "sort")}
    for name in NEW:
        student = copy.deepcopy(room.base).requires_grad_(False)
        torch.manual_seed(NEW.index(name))
        adapters = []
        for path in matrices:
            owner, _, tensor = path.rpartition(".")
            adapters.append(_low_rank(matrices[path].shape, rank))
            parametrize.register_parametrization(student.get_submodule(owner), tensor, adapters[-1])
        room.train(student, name, lr=room.size.lora_lr)
        with torch.no_grad():
            for factor in (factor for adapter in adapters for factor in adapter.parameters()):
                factor.copy_(factor.to(torch.bfloat16))
        found[name] = room.accuracy(student, name)
    return room.cell(found, share_of_16_bit=2 * rank * each / (most / EIGHTH), rank=rank)


def _arm(about: str, measure: Callable[[Classroom], Cell], **settings: Any) -> Arm:
    def run(seed: int, smoke: bool) -> Cell:
        torch_or_raise()
        with one_thread():
            return measure(_classroom(seed, SMOKE if smoke else FULL))

    return Arm(run=run, about=about, settings=settings)


@replications.register("graftllm-fusion")
def graftllm_fusion() -> Replication:
    """Two skills kept as packs do better when each prompt goes to its own pack than when both are added up.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2505.18502",
        metric="kept",
        metric_about="kept share of two new skills: the mean of (accuracy - base) / (tuned - base), on held-out inputs",
        budget="1/8 of the bytes of each difference in 16 bits for packs and adapters; merged and tuned students have all of them",
        settings={**asdict(FULL), "lengths": list(LENGTHS), "modules": MODULES},
        arms={
            "routed": _arm("each prompt to its pack, by label", routed),
            "routed_learnt": _arm("each prompt where a learnt router sends it", routed_learnt),
            "summed": _arm("both packs on", summed),
            "ties": _arm("TIES of the two tuned students, nothing compressed", ties, density=0.2),
            "sequential": _arm("tuned in full on one skill after the other", sequential),
            "lora": _arm("adapters trained at the packs' bytes, by label", lora, lr=FULL.lora_lr),
        },
        comparisons=(
            Comparison(method="routed", baseline="summed"),
            Comparison(method="routed_learnt", baseline="routed"),
            Comparison(method="routed", baseline="ties"),
            Comparison(method="routed", baseline="sequential"),
            Comparison(method="routed", baseline="lora"),
            Comparison(method="sequential", baseline="routed", metric="forgetting", note="forgetting"),
        ),
    )
