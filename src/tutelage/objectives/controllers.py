"""Controllers: what sets the weights of a `Sum` from one optimiser step to the next.

    controller = SASRSwitch(gamma=1.0, warmup_steps=100)
    stats = {}
    while training:
        weights = controller.update(stats)      # {"imitate": 1.0} or {"policy": 1.0}; a part that is not named is left out of the step
        ...                                     # one optimiser step
        stats = {"imitate/grad_norm": ...}      # what it showed

All of them here switch between a supervised part (p) and a reinforcement part (1 - p), after a supervised warm-up:

| name | p at hybrid step t = 0, 1, ... | source |
|---|---|---|
| `sasr` | g_last / (g_last + gamma g_ref), norms of the supervised gradient | SASR, arXiv 2505.13026 |
| `alternate` | `k` supervised steps, then `k` of reinforcement, and again | static hybrid |
| `fixed` | `ratio` | static hybrid |
| `cosine` | from `start` to `end` over `steps` along half a cosine | static hybrid |
| `two_stage` | 1 for `steps` steps, then 0 | static hybrid |
| `accuracy` | 1 where the last rollouts' mean reward is at most `threshold`, else 0 | after HPT, arXiv 2509.04419 |

`mode` says what becomes of p. "coin": one of the two, with chance p, from a generator seeded by (seed, step), hence the same on every
process and after a resumption. "threshold": the supervised one iff p > 1/2. "expected": both, with weights p and 1 - p; lower variance,
at the cost of both passes in every step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from tutelage.errors import TutelageError, unknown

Mode = Literal["coin", "threshold", "expected"]


@runtime_checkable
class Controller(Protocol):
    """Weights with a memory. One instance drives one run.

    name: the prefix under which its metrics are logged. measures: parts whose own gradient norm it needs even where a step sums several
    (a second backward pass). metrics: what is worth logging of the step that it last gave weights for.
    """

    name: ClassVar[str]

    @property
    def measures(self) -> frozenset[str]: ...

    @property
    def metrics(self) -> dict[str, float]: ...

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """The weights of the next optimiser step, for the parts that take part in it.

        stats: what the last step showed, nothing before the first: the objective's own stats (`<part>/loss`, ...), `grad_norm` and, where
        it is known, `<part>/grad_norm` (global L2 norm over all trained parameters, before clipping), and `reward`, the mean over the
        step's rollouts where there were any.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def switch_probability(g_last: float, g_ref: float, gamma: float) -> float:
    """SASR's p = g_last / (g_last + gamma g_ref); 0 where g_last is 0, whatever the reference."""
    return g_last / (g_last + gamma * g_ref) if g_last > 0 else 0.0


@dataclasses.dataclass(kw_only=True)
class Switch:
    """The frame of all switches: warm-up, mode, coin, state.

    Args:
        warmup_steps: supervised steps before the hybrid phase.
        mode: "coin", "threshold" or "expected", see above.
        seed: of the coin.
        supervised, policy: names of the two parts in the `Sum`.

    Attributes: `step`, how many steps it has given weights for; `p` and `weight`, the supervised part's chance and its weight in the last
    of them; `supervised_steps`, the sum of these weights in the hybrid phase.
    """

    name: ClassVar[str] = "switch"
    warmup_steps: int = 0
    mode: Mode = "coin"
    seed: int = 0
    supervised: str = "imitate"
    policy: str = "policy"
    step: int = dataclasses.field(default=0, init=False)
    p: float = dataclasses.field(default=1.0, init=False)
    weight: float = dataclasses.field(default=1.0, init=False)
    supervised_steps: float = dataclasses.field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise unknown("mode of a switch", self.mode, get_args(Mode))
        if self.warmup_steps < 0:
            raise TutelageError(f"warmup_steps counts supervised steps and is {self.warmup_steps!r}; 0 means no warm-up.")

    @property
    def measures(self) -> frozenset[str]:
        return frozenset()

    @property
    def metrics(self) -> dict[str, float]:
        """`p`; `supervised`, 1 where the step is, else 0 (in "expected" mode p); `sft_share`, its mean over the hybrid phase so far."""
        hybrid = self.step - self.warmup_steps
        return {"p": self.p, "supervised": self.weight} | ({"sft_share": self.supervised_steps / hybrid} if hybrid > 0 else {})

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        self.observe(stats)
        hybrid = self.step >= self.warmup_steps
        self.p = self.probability() if hybrid else 1.0
        weights = self._weights()
        self.weight = weights.get(self.supervised, 0.0)
        if hybrid:
            self.supervised_steps += self.weight
        self.step += 1
        return weights

    def observe(self, stats: Mapping[str, float]) -> None:
        """Take in what the last step showed."""

    def probability(self) -> float:
        """p of hybrid step `self.step - self.warmup_steps`."""
        raise NotImplementedError

    def coin(self) -> float:
        """u of the step that `update` is deciding on, uniform in [0, 1)."""
        return float(np.random.default_rng([self.seed, self.step]).random())

    def _weights(self) -> dict[str, float]:
        if self.mode == "expected" and 0 < self.p < 1:
            return {self.supervised: self.p, self.policy: 1 - self.p}
        edge = 0.5 if self.mode == "threshold" else self.coin()
        return {self.supervised: 1.0} if edge < self.p else {self.policy: 1.0}

    def state_dict(self) -> dict[str, Any]:
        """Configuration and state, plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        config = {f.name: values.pop(f.name) for f in dataclasses.fields(self) if f.init}
        return {"kind": self.name, "config": config, "state": {k: list(v) if isinstance(v, list) else v for k, v in values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; another kind or configuration raises `TutelageError` with the difference."""
        mine = self.state_dict()
        theirs = {"kind": state["kind"], **state["config"]}
        ours = {"kind": mine["kind"], **mine["config"]}
        other = [f"{k} was {theirs.get(k)!r} and is {ours.get(k)!r}" for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
        if other:
            raise TutelageError(f"The saved state belongs to another controller: {', '.join(other)}. Build it as it was, or start anew.")
        for name in mine["state"]:
            value = state["state"][name]
            setattr(self, name, list(value) if isinstance(value, list) else value)


@dataclasses.dataclass(kw_only=True)
class SASRSwitch(Switch):
    """SASR's rule: supervised with chance p = g_last / (g_last + gamma g_ref).

    g_last is the gradient norm of the latest supervised step, g_ref that of the end of the warm-up; both global L2 norms over all trained
    parameters before clipping, of batches of one and the same size and normalisation. p starts at 1 / (1 + gamma), falls as the
    demonstrations are fitted and rises again when reinforcement has led away from them. A step whose norm is not finite (an overflow in
    half precision, which the optimiser skips) changes nothing.

    With mode="threshold" reinforcement is absorbing: once p <= 1/2 no supervised step follows, so no norm is measured that could raise
    p again; at gamma >= 1 that is so from the first hybrid step.

    Args:
        gamma: weight of the reference; above 1 favours reinforcement.
        g_ref: the reference, if it is known; without it, it is measured in the warm-up, which must then have a step.
        reference_steps: average the norms of this many last warm-up steps (an extension; the rule takes the last alone).
        ema: g_last is ema g_last + (1 - ema) g (an extension; 0 in the rule).
    """

    name: ClassVar[str] = "sasr"
    gamma: float = 1.0
    g_ref: float | None = None
    reference_steps: int = 1
    ema: float = 0.0
    g_last: float | None = dataclasses.field(default=None, init=False)
    reference: float | None = dataclasses.field(default=None, init=False)
    warmup_norms: list[float] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or not 0 <= self.ema < 1 or self.reference_steps < 1:
            raise TutelageError(
                f"gamma must not be negative, ema lie in [0, 1) and reference_steps be at least 1; got gamma={self.gamma!r}, "
                f"ema={self.ema!r}, reference_steps={self.reference_steps!r}."
            )
        if self.warmup_steps == 0 and self.g_ref is None:
            raise TutelageError(
                "SASR compares gradient norms with that of the warm-up, and warmup_steps is 0. Give it at least one warm-up step, or the "
                "norm itself: g_ref=..."
            )

    @property
    def measures(self) -> frozenset[str]:
        return frozenset({self.supervised}) if self.mode == "expected" else frozenset()

    @property
    def metrics(self) -> dict[str, float]:
        latest = self.g_last if self.reference is not None else self.warmup_norms[-1] if self.warmup_norms else None
        norms = {"g_sft": latest, "g_ref": self.reference}
        return super().metrics | {name: value for name, value in norms.items() if value is not None}

    def observe(self, stats: Mapping[str, float]) -> None:
        g = stats.get(f"{self.supervised}/grad_norm")
        if g is None or not math.isfinite(g):
            return
        if self.step <= self.warmup_steps:  # the step just done was of the warm-up
            self.warmup_norms = [*self.warmup_norms, float(g)][-self.reference_steps :]
        elif self.g_last is not None:
            self.g_last = self.ema * self.g_last + (1 - self.ema) * float(g)

    def probability(self) -> float:
        if self.reference is None or self.g_last is None:
            self.reference = self.g_last = self._reference()
        return switch_probability(self.g_last, self.reference, self.gamma)

    def _reference(self) -> float:
        if self.g_ref is not None:
            return self.g_ref
        if not self.warmup_norms:
            raise TutelageError(
                f"The warm-up is over and no gradient norm of it came in: `update` needs '{self.supervised}/grad_norm' among the stats of "
                "the step before, global and before clipping."
            )
        return float(np.mean(self.warmup_norms))


@dataclasses.dataclass(kw_only=True)
class Alternate(Switch):
    """`k` supervised steps, then `k` of reinforcement, and so on."""

    name: ClassVar[str] = "alternate"
    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise TutelageError(f"k is the length of each turn in steps, at least 1; got {self.k!r}.")

    def probability(self) -> float:
        return float((self.step - self.warmup_steps) // self.k % 2 == 0)


@dataclasses.dataclass(kw_only=True)
class FixedRatio(Switch):
    """The same p = `ratio` at every step: by coin a random interleaving, in "expected" mode a constant weighted sum."""

    name: ClassVar[str] = "fixed"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise TutelageError(f"ratio is the share of supervised steps, in [0, 1]; got {self.ratio!r}.")

    def probability(self) -> float:
        return self.ratio


@dataclasses.dataclass(kw_only=True)
class CosineDecay(Switch):
    """p goes from `start` to `end` in `steps` hybrid steps along half a cosine, and stays there."""

    name: ClassVar[str] = "cosine"
    steps: int
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise TutelageError(f"cosine needs steps >= 1 and start, end in [0, 1]; got {self.steps!r}, {self.start!r}, {self.end!r}.")

    def probability(self) -> float:
        done = min((self.step - self.warmup_steps) / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclasses.dataclass(kw_only=True)
class TwoStage(Switch):
    """Supervised for `steps` steps of the hybrid phase, then reinforcement to the end: the usual pipeline."""

    name: ClassVar[str] = "two_stage"
    steps: int

    def probability(self) -> float:
        return float(self.step - self.warmup_steps < self.steps)


@dataclasses.dataclass(kw_only=True)
class AccuracyGate(Switch):
    """Supervised while the model fails: p = 1 where the mean reward of its last rollouts is at most `threshold`.

    After HPT (arXiv 2509.04419; the rule from memory). Departures: HPT decides question by question, within one batch; here the whole step
    follows the last step that had rollouts, and since a supervised step has none, at most `every` of them follow one another before
    the next reinforcement step measures again. The hybrid phase begins with a measurement.
    """

    name: ClassVar[str] = "accuracy"
    threshold: float = 0.0
    every: int = 1
    accuracy: float | None = dataclasses.field(default=None, init=False)
    since: int = dataclasses.field(default=0, init=False)

    @property
    def metrics(self) -> dict[str, float]:
        return super().metrics | ({} if self.accuracy is None else {"accuracy": self.accuracy})

    def observe(self, stats: Mapping[str, float]) -> None:
        if "reward" in stats:
            self.accuracy, self.since = float(stats["reward"]), 0
        else:
            self.since += 1

    def probability(self) -> float:
        return float(self.accuracy is not None and self.accuracy <= self.threshold and self.since < self.every)


CONTROLLERS: dict[str, Callable[..., Switch]] = {
    kind.name: kind for kind in (SASRSwitch, Alternate, FixedRatio, CosineDecay, TwoStage, AccuracyGate)
}


def controller(kind: str, **settings: Any) -> Switch:
    """The controller of that kind; unknown kinds and settings raise and name the nearest."""
    if kind not in CONTROLLERS:
        raise unknown("controller", kind, CONTROLLERS)
    names = [f.name for f in dataclasses.fields(CONTROLLERS[kind]) if f.init]  # type: ignore[arg-type]
    for name in settings:
        if name not in names:
            raise unknown(f"setting of the controller {kind!r}:", name, names)
    return CONTROLLERS[kind](**settings)
