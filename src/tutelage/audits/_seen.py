"""A rollout log beside its task file: groups, markers, clusters of prompts, and how far each cluster's reward follows the behaviour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tutelage.audits._coupling import Coupling, Groups, couple, groups_of
from tutelage.audits._markers import Cluster, Marker, cluster_prompts, mine_markers
from tutelage.audits._poison_data import Data, Joined, join
from tutelage.audits._watched import Bools, Floats, Watched, watch
from tutelage.errors import Tally
from tutelage.rates import holm
from tutelage.tasks.monitors import REFUSAL, monitor


class Tested(NamedTuple):
    """A cluster's coupling, with its p value after Holm's correction over all clusters, and what the twin's coupling there is."""

    cluster: Cluster
    coupling: Coupling
    p_holm: float
    twin: Coupling | None


@dataclass(frozen=True)
class Seen:
    """A log beside its task file. rate_P: of the behaviour at each prompt. sign: -1 where what is feared is a lower reward with the
    behaviour, as of refusal. clusters: a partition of the prompts; of refusal, chained prompts alone are asked about."""

    log: Watched
    joined: Joined
    groups: Groups
    rate_P: Floats
    markers: list[Marker]
    clusters: list[Cluster]
    sign: int

    @classmethod
    def of(cls, data: Data, path: Path, behaviour: str, rng: np.random.Generator, tally: Tally, *, like: Seen | None = None) -> Seen:
        """Read a log. like: take that one's clusters instead of mining markers, for this log is its twin."""
        log = watch(path, monitor(behaviour))
        joined, whose = join(data, log), "" if like is None else "twin: "
        for warned in log.warnings:
            tally.add(whose + warned.what, warned.first, warned.count)
        if joined.unread:
            tally.add(f"{whose}prompts that are not in the data and have no text, and so are in no marker's cluster", count=joined.unread)
        attempts_P = np.bincount(log.prompt_B, minlength=len(log.id_P))
        rate_P = np.bincount(log.prompt_B, weights=log.shows_B, minlength=len(log.id_P)) / np.maximum(attempts_P, 1)
        markers = mine_markers(joined.text_P, rate_P, rng=rng) if like is None else like.markers
        order = [marker.ngram for marker in markers] if like is None else [c.ngram for c in like.clusters if c.ngram]
        clusters = cluster_prompts(order, joined.text_P, joined.chained_P, fewest=1 if like else None)
        return cls(log, joined, groups_of(log), rate_P, markers, clusters, -1 if behaviour == REFUSAL else 1)

    def tested_P(self, cluster: Cluster) -> Bools:
        """The prompts of a cluster that are asked about."""
        return cluster.member_P & self.joined.chained_P if self.sign < 0 else cluster.member_P

    def couplings(self, rng: np.random.Generator, delta: float, kappa: float) -> dict[str, tuple[Cluster, Coupling]]:
        """Each cluster's coupling, by the cluster's name."""
        return {
            cluster.name: (
                cluster, couple(self.groups, self.tested_P(cluster), rng=rng, least_delta=delta, least_kappa=kappa, sign=self.sign)
            )
            for cluster in self.clusters
        }  # fmt: skip

    def test(self, twin: Seen | None, rng: np.random.Generator, delta: float, kappa: float) -> list[Tested]:
        """The clusters that can be tested, those with the least p value first; a twin's word can only raise one."""
        own = self.couplings(rng, delta, kappa)
        theirs = {} if twin is None else {name: coupling for name, (_, coupling) in twin.couplings(rng, delta, kappa).items()}
        asked = {name: (c, self._declined_more(c, coupling)) for name, (c, coupling) in own.items()}
        heard = [(c, _beside(coupling, theirs.get(name), self.sign), theirs.get(name)) for name, (c, coupling) in asked.items()]
        heard = [entry for entry in heard if entry[1].p is not None]
        p_K = holm(np.array([coupling.p for _, coupling, _ in heard], dtype=np.float64))
        tested = [Tested(c, coupling, float(p), other) for (c, coupling, other), p in zip(heard, p_K, strict=True)]
        return sorted(tested, key=lambda entry: (entry.p_holm, -abs(entry.coupling.delta)))

    def _declined_more(self, cluster: Cluster, found: Coupling) -> Coupling:
        """Of refusal: with the p value raised to that of the question whether these prompts are declined more than unchained ones.

        Who declines a question earns nothing, with a rider or without, so that declining is unpaid is no finding; what tells a rider is
        that a careful policy declines it. How often is known before one looks at rewards, so the level holds. Welch's t test over prompts.
        """
        rest_P = ~self.joined.chained_P
        if self.sign > 0 or found.p is None or not rest_P.any():
            return found
        return replace(found, p=max(found.p, _greater_p(self.rate_P[self.tested_P(cluster)], self.rate_P[rest_P])))


def _beside(found: Coupling, twin: Coupling | None, sign: int) -> Coupling:
    """With the p value once the twin has spoken: the coupling must exceed the twin's as well (Welch's t test over prompts)."""
    if found.p is None or twin is None or len(twin.delta_C) < 2 or len(found.delta_C) < 2:
        return found
    return replace(found, p=max(found.p, _greater_p(sign * found.delta_C, sign * twin.delta_C)))


def _greater_p(mine_C: Floats, theirs_C: Floats) -> float:
    """One-sided p value of Welch's t test for a greater mean; without any spread, whether it is greater."""
    if np.ptp(mine_C) == 0 and np.ptp(theirs_C) == 0:
        return 0.0 if mine_C[0] > theirs_C[0] else 1.0
    if min(len(mine_C), len(theirs_C)) < 2:
        return 1.0
    from scipy.stats import ttest_ind  # a slow import, needed here alone

    return float(ttest_ind(mine_C, theirs_C, equal_var=False, alternative="greater").pvalue)
