"""Objectives made of objectives, and the plain averages that go beside a policy gradient: entropy bonus, log-likelihood.

A `Sum` may hold parts that read other rows than the rest. Such a part is an `On(source, objective)`: the batch has the source's columns
under the source's name, `demonstrations/logp_BT` beside `logp_BT`, with a B and a T of their own, and what the part divides by is counted
over them alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError, unknown
from tutelage.objectives.aggregation import Aggregation, token_weights
from tutelage.objectives.contract import Batch, Objective, Stats, check_batch, denominators_of
from tutelage.objectives.controllers import Controller


class Sum:
    """A weighted sum of objectives, each divided by its own counts.

        objective = Sum({"policy": (grpo, 1.0), "imitate": (TokenAverage(key="logp_BT", scale=-1, mask="expert_mask_BT"), 0.1)})
        loss, stats = objective(batch, denominators=objective.denominators_of(window))

    Denominators and stats carry the part's name: `imitate/tokens`, `imitate/loss`. A controller's weights come in by call,
    `objective(..., weights={"imitate": 0.05})`, and so do hyperparameters of a part, `objective(..., policy={"kl_coef": 0.0})`.

    Args:
        parts: name → (objective, weight). Names hold no "/" and are not "weights".
        controller: gives factors for these weights from step to step. The trainer asks it; a call of the sum itself does not.
    """

    def __init__(self, parts: Mapping[str, tuple[Objective, float]], *, controller: Controller | None = None) -> None:
        if not parts:
            raise TutelageError('Sum got no objectives; give at least one, e.g. Sum({"policy": (objective("grpo"), 1.0)}).')
        for name in parts:
            if "/" in name or name in ("", "weights", "denominators", "batch"):
                raise TutelageError(
                    f"{name!r} cannot name a part of a Sum: names hold no '/' and are not 'weights', 'denominators' or 'batch'."
                )
        self.parts = dict(parts)
        self.controller = controller

    def __repr__(self) -> str:
        return f"Sum({self.parts!r}{f', controller={self.controller!r}' if self.controller is not None else ''})"

    def only(self, weights: Mapping[str, float]) -> Sum:
        """The sum of the parts named, with these weights; it reads nothing of the others. Denominators and stats keep their names."""
        for name in weights:
            if name not in self.parts:
                raise unknown("part of the sum", name, self.parts)
        return Sum({name: (part, float(weights[name])) for name, (part, _) in self.parts.items() if name in weights})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset().union(*(part.requires for part, _ in self.parts.values()))

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": count
            for name, (part, _) in self.parts.items()
            for key, count in part.denominators_of(batch, max_length=max_length).items()
        }

    def __call__(
        self, batch: Batch, *, denominators: Mapping[str, Tensor], weights: Mapping[str, float] | None = None, **hyper: Mapping[str, Any]
    ) -> tuple[Tensor, Stats]:
        """Σ weight · loss; stats are `<part>/loss` (unweighted) and `<part>/<stat>`."""
        for name in (*(weights or {}), *hyper):
            if name not in self.parts:
                raise unknown("part of the sum", name, self.parts)
        losses: list[Tensor] = []
        stats: Stats = {}
        for name, (part, weight) in self.parts.items():
            own = {key.removeprefix(f"{name}/"): count for key, count in denominators.items() if key.startswith(f"{name}/")}
            if not own:
                raise TutelageError(
                    f"No denominator of the part {name!r} came in (got {', '.join(sorted(denominators)) or 'none'}). "
                    "Count them with the sum's own `denominators_of(batch)`, which gives each part its own."
                )
            loss, part_stats = part(batch, denominators=own, **hyper.get(name, {}))
            losses.append((weights or {}).get(name, weight) * loss)
            stats |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in part_stats.items()}
        return torch.stack(losses).sum(), stats


@dataclasses.dataclass(frozen=True)
class On:
    """An objective over the rows of another source: it reads `<source>/<column>`, and its denominators are counted there.

        objective = Sum({"policy": (grpo, 1.0), "imitate": (On("demonstrations", nll), 0.1)})

    Args:
        source: the name that the source's columns carry; without "/".
        objective: what is computed on them.
    """

    source: str
    objective: Objective

    def __post_init__(self) -> None:
        if not self.source or "/" in self.source:
            raise TutelageError(
                f"{self.source!r} cannot name a source: a name is not empty and holds no '/'. An example: 'demonstrations'."
            )

    @property
    def requires(self) -> frozenset[str]:
        return frozenset(f"{self.source}/{key}" for key in self.objective.requires)

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        own = self._own(batch)
        if not own:
            found = ", ".join(sorted(batch)) or "no columns"
            raise TutelageError(
                f"No column of the source {self.source!r} came in to be counted ({self.source}/mask_BT); the batch has {found}."
            )
        return self.objective.denominators_of(own, max_length=max_length)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        check_batch(self.requires, batch)
        return self.objective(self._own(batch), denominators=denominators, **hyper)

    def _own(self, batch: Batch) -> dict[str, Tensor]:
        return {key.removeprefix(f"{self.source}/"): x for key, x in batch.items() if key.startswith(f"{self.source}/")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenAverage:
    """`scale` times the average of one column; the loss for entropy, likelihood or any per-token penalty.

    Args:
        key: the column to average, (B, T).
        scale: factor; −1 to maximise.
        mask: name of the mask that says which tokens count (and are counted).
        aggregation, max_length, drop_empty: see `aggregation.py`.
    """

    key: str
    scale: float = 1.0
    mask: str = "mask_BT"
    aggregation: Aggregation = "token_mean"
    max_length: int | None = None
    drop_empty: bool = False

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({self.key, self.mask} | ({"group_tokens_B"} if self.aggregation == "group_token_mean" else set()))

    def denominators_of(self, batch: Batch, *, max_length: int | None = None) -> dict[str, Tensor]:
        return denominators_of(batch, mask=self.mask, max_length=max_length)

    def __call__(self, batch: Batch, *, denominators: Mapping[str, Tensor], **hyper: Any) -> tuple[Tensor, Stats]:
        """The scaled average; the stat `mean` is the unscaled token mean."""
        for name in hyper:
            if name not in (names := [field.name for field in dataclasses.fields(self)]):
                raise unknown("setting of TokenAverage", name, names)
        if hyper:
            return dataclasses.replace(self, **hyper)(batch, denominators=denominators)
        check_batch(self.requires, batch)
        mask_BT = batch[self.mask].bool()
        x_BT = torch.where(mask_BT, batch[self.key], 0.0)
        x_BT = x_BT.float() if x_BT.dtype in (torch.float16, torch.bfloat16) else x_BT
        weight_BT = token_weights(
            mask_BT,
            denominators,
            aggregation=self.aggregation,
            max_length=self.max_length,
            drop_empty=self.drop_empty,
            group_tokens_B=batch.get("group_tokens_B"),
            dtype=x_BT.dtype,
        )
        mean_BT = token_weights(mask_BT, denominators, aggregation="token_mean", dtype=x_BT.dtype)
        return self.scale * (weight_BT * x_BT).sum(), {"mean": (mean_BT * x_BT).sum().detach()}
