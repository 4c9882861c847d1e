"""RIAC: a tree of boxes, split where learning progress differs, sampled where it is high.

Source: Baranes and Oudeyer, "R-IAC: Robust intrinsically motivated exploration and active learning" (2009), in the form for task spaces of
Portelas et al. (CoRL 2019, arXiv 1910.07224).

    ALP of a box = |mean(R[-w:-h]) - mean(R[-h:])|,  w = min(len, window),  h = floor(w / 2);  0 for two returns or fewer
    a leaf with more than `window` pairs: of 50 random cuts, the valid one with the highest score |ALP_1 - ALP_2| (times n_1 n_2)
    next task: 10 %  box ~ ALP, its lowest return's task plus noise;  20 %  uniform in the space;  70 %  box ~ ALP, uniform inside
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._draws import draw_arms, proportional
from tutelage.curricula._spaces import Range, SpaceCurriculum
from tutelage.errors import TutelageError, unknown
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]
Score = Literal["population", "alp_gap"]
SCORES = get_args(Score)

_REDRAWS = 20  # draws per attempt to find a cut with enough pairs on both sides; the release redraws for ever
_INSET = 1e-5


def learning_progress(reward_M: Float, window: int) -> float:
    """The absolute difference of the mean returns of the older and the newer half of the last `window` returns."""
    w = min(len(reward_M), window)
    if w <= 2:
        return 0.0
    h = w // 2
    recent_M = np.asarray(reward_M)[-w:]
    return abs(float(recent_M[:-h].mean()) - float(recent_M[-h:].mean()))


@dataclass
class Region:
    """A box of the tree, its last pairs (return, task...) and its progress; `cut` is (dimension, threshold), children are places."""

    low_D: Float
    high_D: Float
    pairs: deque[Float]
    progress: float = 0.0
    cut: tuple[int, float] = (-1, 0.0)
    children: tuple[int, int] = (-1, -1)

    @property
    def is_leaf(self) -> bool:
        return self.cut[0] < 0


@curricula.register("riac")
class RIAC(SpaceCurriculum):
    """Points from a tree of boxes, by the learning progress in each (Baranes and Oudeyer 2009; arXiv 1910.07224).

    window: pairs that a box remembers before it is split, and over which progress is measured. attempts: cuts tried per split.
    min_side: least side of a box, as a share of the space's. score: "population" weighs a cut by the pairs on both sides, as published;
    "alp_gap" does not, as released (there the product is always 4). leaves_only: sample leaves instead of all boxes. mutation_share,
    random_share: shares of the first two ways to draw. mutation_noise: standard deviation per parameter, in the parameter's units.
    discard: share of a leaf's oldest pairs dropped when no cut is valid. reward_range: see `alp-gmm`. TeachMyAgent's tuned values are
    window 150, attempts 75, min_side 0.1.

    Departures: float64 points, so that a task lies in one leaf; at most 20 random draws per attempt to find a cut with enough pairs on
    either side (the release may loop for ever); one generator; a chosen box without pairs is drawn from uniformly.
    """

    name = "riac"
    memory = ("tree",)

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        window: int = 200,
        attempts: int = 50,
        min_side: float = 1 / 15,
        score: Score = "population",
        leaves_only: bool = False,
        mutation_share: float = 0.1,
        random_share: float = 0.2,
        mutation_noise: float = 0.1,
        discard: float = 0.25,
        reward_range: Range = None,
    ) -> None:
        if window < 4 or attempts < 1 or not 0 < discard <= 1 or not 0 < min_side <= 1 or not 0 <= mutation_noise < np.inf:
            raise TutelageError(
                "riac: window must be at least 4, attempts at least 1, discard and min_side in (0, 1], mutation_noise finite and at least "
                f"0; got window={window}, attempts={attempts}, discard={discard}, min_side={min_side}, mutation_noise={mutation_noise}."
            )
        if not (mutation_share >= 0 and random_share >= 0 and mutation_share + random_share <= 1):
            raise TutelageError(
                f"riac: mutation_share and random_share must be at least 0 and at most 1 together; got {mutation_share} and {random_share}."
            )
        if score not in SCORES:
            raise unknown("score of riac", score, SCORES)
        config = {"window": window, "attempts": attempts, "min_side": min_side, "score": score, "leaves_only": leaves_only}
        config |= {"mutation_share": mutation_share, "random_share": random_share, "mutation_noise": mutation_noise, "discard": discard}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        self.regions = [Region(self.space.low_D.copy(), self.space.high_D.copy(), deque(maxlen=window + 1))]

    def _propose(self, n: int) -> Float:
        boxes = [region for region in self.regions if region.is_leaf or not self.config["leaves_only"]]
        chosen_N = draw_arms(proportional(np.array([box.progress for box in boxes])), n, self.rng)
        low_ND, high_ND = (np.array([getattr(boxes[i], side) for i in chosen_N]) for side in ("low_D", "high_D"))
        way_N = self.rng.random(n)
        everywhere_ND = self.space.sample(n, self.rng)
        inside_ND = low_ND + self.rng.random(low_ND.shape) * (high_ND - low_ND)
        noise_ND = self.config["mutation_noise"] * self.rng.standard_normal(low_ND.shape)
        mutated_ND = inside_ND.copy()
        for row in np.flatnonzero(way_N < self.config["mutation_share"]):
            pairs = boxes[chosen_N[row]].pairs
            if pairs:
                mutated_ND[row] = min(pairs, key=lambda pair: pair[0])[1:] + noise_ND[row]
        inset_ND = np.minimum(_INSET, (high_ND - low_ND) / 4)
        mutated_ND = np.clip(mutated_ND, low_ND + inset_ND, high_ND - inset_ND)
        mutates_N1 = (way_N < self.config["mutation_share"])[:, None]
        random_N1 = (way_N < self.config["mutation_share"] + self.config["random_share"])[:, None]
        return self.space.clip(np.where(mutates_N1, mutated_ND, np.where(random_N1, everywhere_ND, inside_ND)))

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            pair_Q = np.concatenate([[reward], point_D])
            region = self.regions[0]
            while True:
                region.pairs.append(pair_Q)
                region.progress = self._progress([pair[0] for pair in region.pairs])
                if region.is_leaf:
                    break
                dimension, threshold = region.cut
                region = self.regions[region.children[0 if point_D[dimension] <= threshold else 1]]
            if len(region.pairs) > self.config["window"]:
                self._split(region)

    def _progress(self, reward_M: Any) -> float:
        return learning_progress(np.asarray(reward_M), self.config["window"])

    def _split(self, region: Region) -> None:
        """Cut a leaf at the best of the valid attempts; without one, drop its oldest pairs."""
        pair_MQ = np.array(region.pairs)
        best, cut = -np.inf, None
        for dimension, threshold in self._cuts(region, pair_MQ):
            below_M = pair_MQ[:, 1 + dimension] <= threshold
            score = abs(self._progress(pair_MQ[below_M, 0]) - self._progress(pair_MQ[~below_M, 0]))
            if self.config["score"] == "population":
                score *= int(below_M.sum()) * int((~below_M).sum())
            if score > best:
                best, cut = score, (dimension, threshold)
        if cut is None:
            for _ in range(max(1, int(len(region.pairs) * self.config["discard"]))):
                region.pairs.popleft()
            region.progress = self._progress([pair[0] for pair in region.pairs])
            return
        region.cut, region.children = cut, (len(self.regions), len(self.regions) + 1)
        dimension, threshold = cut
        below_M = pair_MQ[:, 1 + dimension] <= threshold
        for side_M, low, high in ((below_M, region.low_D[dimension], threshold), (~below_M, threshold, region.high_D[dimension])):
            child = Region(region.low_D.copy(), region.high_D.copy(), deque(pair_MQ[side_M], maxlen=self.config["window"] + 1))
            child.low_D[dimension], child.high_D[dimension] = low, high
            child.progress = self._progress(pair_MQ[side_M, 0])
            self.regions.append(child)

    def _cuts(self, region: Region, pair_MQ: Float) -> list[tuple[int, float]]:
        """The valid ones among the first `attempts` random cuts that leave window / 20 pairs on both sides."""
        draws = _REDRAWS * self.config["attempts"]
        dimension_C = self.rng.integers(self.space.dimensions, size=draws)
        low_C, high_C = region.low_D[dimension_C], region.high_D[dimension_C]
        threshold_C = low_C + self.rng.random(draws) * (high_C - low_C)
        below_C = (pair_MQ[:, 1 + dimension_C] <= threshold_C).sum(axis=0)
        populated_C = np.minimum(below_C, len(pair_MQ) - below_C) >= self.config["window"] / 20
        tried = np.flatnonzero(populated_C)[: self.config["attempts"]]
        least_C = self.config["min_side"] * self.space.range_D[dimension_C]
        valid = [c for c in tried if min(threshold_C[c] - low_C[c], high_C[c] - threshold_C[c]) >= least_C[c]]
        return [(int(dimension_C[c]), float(threshold_C[c])) for c in valid]

    @property
    def tree(self) -> dict[str, Any]:
        """The regions as arrays, as the state keeps them."""
        every = [pair for region in self.regions for pair in region.pairs]
        return {
            "low_RD": np.array([region.low_D for region in self.regions]),
            "high_RD": np.array([region.high_D for region in self.regions]),
            "cut_dimension_R": np.array([region.cut[0] for region in self.regions], dtype=np.int64),
            "cut_threshold_R": np.array([region.cut[1] for region in self.regions]),
            "children_R2": np.array([region.children for region in self.regions], dtype=np.int64),
            "size_R": np.array([len(region.pairs) for region in self.regions], dtype=np.int64),
            "pair_MQ": np.array(every).reshape(len(every), 1 + self.space.dimensions),
        }

    @tree.setter
    def tree(self, tree: dict[str, Any]) -> None:
        part_R = np.split(np.array(tree["pair_MQ"]), np.cumsum(tree["size_R"])[:-1])
        self.regions = []
        for r, pair_MQ in enumerate(part_R):
            region = Region(np.array(tree["low_RD"][r]), np.array(tree["high_RD"][r]), deque(pair_MQ, maxlen=self.config["window"] + 1))
            region.cut = (int(tree["cut_dimension_R"][r]), float(tree["cut_threshold_R"][r]))
            region.children = (int(tree["children_R2"][r][0]), int(tree["children_R2"][r][1]))
            region.progress = self._progress(pair_MQ[:, 0])
            self.regions.append(region)

    @property
    def metrics(self) -> dict[str, float]:
        progress_R = np.array([region.progress for region in self.regions])
        return {
            "regions": float(len(self.regions)),
            "progress_mean": float(progress_R.mean()),
            "progress_max": float(progress_R.max()),
        }
