"""Unlearning on directories: what is to go and what is to stay from files, the changed tensors written back, resumable.

    job = Job(Path("model"), Path("forget.jsonl"), Path("retain.jsonl"), Settings(method="cku", steps=100))
    record = forget_checkpoint(job, Path("out"))

Measured before and after, by reading: what the model still knows of the forget set and of a part of the retain set that is kept aside from
training (`metrics.py`). The state is kept in `OUT.partial/` while it works, so that a killed command, repeated, goes on.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.edits.rewrite import rewrite
from tutelage.edits.store import WeightStore
from tutelage.errors import TutelageError, unknown
from tutelage.files import atomic_write
from tutelage.model_edits.calibration import batches, read_examples, split
from tutelage.model_edits.card import write_card
from tutelage.model_edits.cku import Cku
from tutelage.model_edits.metrics import memorisation, summary
from tutelage.model_edits.neurons import Kind
from tutelage.model_edits.unlearn import NOT_STOPPED, Retain, Unlearning
from tutelage.models import load_model
from tutelage.objectives.unlearning import Forget
from tutelage.registry import objectives

KEEP_EVERY = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to unlearn. method: "cku" (ascent with locked neurons), or a forget loss on all parameters. share_aside: of the retain examples,
    to measure on. max_length: of a text, in tokens. The rest as in `Cku` and `Unlearning`."""

    method: str = "cku"
    retain_loss: Retain = "kl"
    gamma: float = 1.0
    alpha: float = 1.0
    steps: int = 100
    lr: float = 1e-5
    batch_size: int = 8
    rate: float = 0.8
    depth: tuple[float, float] = (0.25, 0.4)
    score: Kind = "snip"
    stop_nll: float | None = None
    share_aside: float = 0.2
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        known = ["cku", *(name for name in objectives.names() if isinstance(objectives.build(name), Forget))]
        if self.method not in known:
            raise unknown("unlearning method", self.method, known)
        if self.steps < 1 or not 0 < self.share_aside < 1:
            raise TutelageError(f"steps must be at least 1 and share_aside lie in (0, 1); got {self.steps} and {self.share_aside}.")


class Job:
    """A model opened for unlearning, with its texts and the loop; `measure()` tells what it knows."""

    def __init__(self, model_dir: Path, forget: Path, retain: Path, settings: Settings) -> None:
        self.settings, self.store = settings, WeightStore(model_dir)
        self.model, self.tokenizer = load_model(str(model_dir), dtype=torch.float32)
        read = lambda path: read_examples(path, self.tokenizer, max_length=settings.max_length)  # noqa: E731
        self.forget, kept = read(forget), read(retain)
        self.retain, self.aside = split(kept, settings.share_aside, settings.seed, what="retain")
        loop: dict[str, Any] = {"retain_loss": settings.retain_loss, "gamma": settings.gamma, "alpha": settings.alpha, "lr": settings.lr}
        loop |= {"batch_size": settings.batch_size, "seed": settings.seed, "pad_id": self.tokenizer.pad_token_id}
        if settings.method == "cku":
            part = Cku(rate=settings.rate, depth=settings.depth, score=settings.score, seed=settings.seed)
            loop |= part.constraints(self.model, lambda: batches(self.retain, size=settings.batch_size, pad_id=self.tokenizer.pad_token_id))
        else:
            loop["forget_loss"] = settings.method
        self.loop = Unlearning(self.model, self.forget, self.retain, **loop)
        missing = [name for name in self.loop.parameters if name not in self.store.tensors]
        if missing:
            raise TutelageError(
                f"The parameter {missing[0]} has no tensor of its name in {model_dir}: the checkpoint stores it in another form. Save the "
                "model once with transformers and edit that."
            )

    def measure(self) -> dict[str, Any]:
        """Metrics of the forget set and of the retain examples kept aside, in open-unlearning's shape."""
        how = {"batch_size": self.settings.batch_size, "pad_id": self.tokenizer.pad_token_id}
        return {"forget": memorisation(self.model, self.forget, **how), "retain": memorisation(self.model, self.aside, **how)}


def forget_checkpoint(
    job: Job,
    out: Path,
    *,
    sweep: Sequence[int] = (),
    target: float = 0.1,
    most_loss: float = 0.05,
    undo: str = "base",
    command: str = "",
    tell: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Unlearn and write the checkpoint with its record, metrics and card; returns the record, with `before`, `after` and `sweep`.

    sweep: numbers of steps, ascending: the first one chosen at which the forget answers' probability is at most `target` and the retain
    answers' at most `most_loss` below the start's; where none is, a `TutelageError` says what was nearest and nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        raise TutelageError(f"{out} exists already and is not overwritten. Choose another name, or move it away.")
    partial = out.with_name(f"{out.name}.partial")
    before = _before(job, partial)
    state = partial / "state.safetensors"
    if state.exists():
        job.loop.load(state)
    table = _train(job, state, list(sweep), before, target, most_loss, tell)
    measured = job.measure()
    after = summary(measured)
    details = {"method": dataclasses.asdict(job.settings), "before": before, "after": after, "steps": len(job.loop.history), "sweep": table}

    def more(folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps({"before": before, "after": after, **measured}, indent=1) + "\n", encoding="utf-8")
        title = f"{job.store.path.name}, unlearned"
        write_card(folder, title=title, edit=str(job.settings.method), details=details, command=command)

    new = {name: (lambda parameter=parameter: parameter.detach().numpy()) for name, parameter in job.loop.parameters.items()}
    record = rewrite(job.store, out, new, edit="unlearn", details=details, undo=undo, more=more)
    shutil.rmtree(partial, ignore_errors=True)
    return record


def _before(job: Job, partial: Path) -> dict[str, Any]:
    """The numbers before any step, measured once; a state of other settings is refused."""
    path, identity = (
        partial / "before.json",
        json.loads(json.dumps({**dataclasses.asdict(job.settings), "model": str(job.store.path.resolve())})),
    )
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        differ = [key for key, value in identity.items() if kept["settings"].get(key) != value]
        if differ:
            raise TutelageError(
                f"{partial} holds unfinished unlearning with other settings ({', '.join(differ)}). Repeat that command, or remove it."
            )
        return dict(kept["before"])
    before = summary(job.measure())
    atomic_write(path, json.dumps({"settings": identity, "before": before}))
    return before


def _train(
    job: Job, state: Path, sweep: list[int], before: Mapping[str, Any], target: float, most_loss: float, tell: Any
) -> list[dict[str, Any]]:
    """The steps, kept every so often; of a sweep, up to the chosen place, with what was measured on the way."""
    stop = NOT_STOPPED if job.settings.stop_nll is None else job.settings.stop_nll
    table: list[dict[str, Any]] = []
    for goal in sorted(sweep) or [job.settings.steps]:
        while len(job.loop.history) < goal:
            if job.loop.run(min(goal, len(job.loop.history) + KEEP_EVERY), stop_nll=stop, tell=tell):
                break
            job.loop.save(state)
        if not sweep:
            return table
        now = summary(job.measure())
        table.append({"steps": len(job.loop.history), **now})
        gone, lost = now["forget_Q_A_Prob"] or 0.0, (before["retain_Q_A_Prob"] or 0.0) - (now["retain_Q_A_Prob"] or 0.0)
        if gone <= target and lost <= most_loss:
            return table
    nearest = min(table, key=lambda row: row["forget_Q_A_Prob"])
    raise TutelageError(
        f"No number of steps in the sweep brings the forget answers' probability to {target:g} at a loss of at most {most_loss:g}; the "
        f"lowest is {nearest['forget_Q_A_Prob']:.3f} after {nearest['steps']} steps, with the retain answers' at "
        f"{nearest['retain_Q_A_Prob']:.3f}. Sweep further, change the settings, or loosen the target; nothing was written."
    )
