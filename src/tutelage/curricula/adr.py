"""ADR: a box of tasks that grows where the student does well on its faces, and shrinks where it fails.

Source: OpenAI et al., "Solving Rubik's Cube with a robot hand" (arXiv 1910.07113), automatic domain randomisation, in the form of
TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815).

    x ~ U[lo, hi];  with probability p_b one parameter i is put on a face, x_i = lo_i or hi_i
    each face keeps the returns of tasks that lay on it; once it has `queue` of them, with mean m:
        m >= high:  the face moves out by `step`, at most to the bound of the space
        m <= low:   the face moves in by `step`, at most to the opposite face
"""

from __future__ import annotations

import numpy as np

from tutelage.curricula._spaces import Float, Range, SpaceCurriculum
from tutelage.errors import TutelageError
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace


@curricula.register("adr")
class ADR(SpaceCurriculum):
    """A box that grows from a first task by the returns on its faces (arXiv 1910.07113; arXiv 2103.09815).

    low, high: returns at or below which a face moves in, and at or above which it moves out (TeachMyAgent's walker: 0 and 180). initial:
    the first task, an easy one; None, the centre of the space. step: how far a face moves, in the parameter's units; with `relative_step` a
    share of its range. queue: returns per decision. boundary_share: probability of a task on a face (0.7 in the benchmark's scripts).
    reward_range: see `alp-gmm`; thresholds then are in [0, 1].

    Departures: one generator that runs on (the release reseeds its box at every move and repeats the same draws); float64 points, so that
    a task on a face is recognised exactly.
    """

    name = "adr"
    memory = ("low_D", "high_D", "queued_2DQ", "count_2D")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        low: float = 0.0,
        high: float = 180.0,
        initial: tuple[float, ...] | None = None,
        step: float = 0.1,
        relative_step: bool = False,
        queue: int = 10,
        boundary_share: float = 0.5,
        reward_range: Range = None,
    ) -> None:
        if not low < high or not 0 < step < np.inf or queue < 1 or not 0 <= boundary_share <= 1:
            raise TutelageError(
                "adr: low must lie below high, step be above 0 and finite, queue be at least 1 and boundary_share in [0, 1]; got "
                f"low={low}, high={high}, step={step}, queue={queue}, boundary_share={boundary_share}."
            )
        first = None if initial is None else [float(x) for x in initial]
        config = {"low": low, "high": high, "initial": first, "step": step, "relative_step": relative_step, "queue": queue}
        config |= {"boundary_share": boundary_share}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        centre_D = (self.space.low_D + self.space.high_D) / 2
        start_D = centre_D if first is None else self.space.check([first], field="adr: initial")[0]
        self.low_D, self.high_D = start_D.copy(), start_D.copy()
        self.queued_2DQ = np.zeros((2, self.space.dimensions, queue))  # low faces, high faces
        self.count_2D = np.zeros((2, self.space.dimensions), dtype=np.int64)
        self.step_D = step * (self.space.range_D if relative_step else np.ones(self.space.dimensions))

    def _propose(self, n: int) -> Float:
        points_ND = self.low_D + self.rng.random((n, self.space.dimensions)) * (self.high_D - self.low_D)
        points_ND = np.clip(points_ND, self.low_D, self.high_D)
        dimension_N = self.rng.integers(self.space.dimensions, size=n)
        face_ND = np.where(self.rng.random((n, 1)) < 0.5, self.low_D, self.high_D)
        full_D = (self.low_D == self.space.low_D) & (self.high_D == self.space.high_D)
        rows = np.flatnonzero((self.rng.random(n) < self.config["boundary_share"]) & ~full_D[dimension_N])
        points_ND[rows, dimension_N[rows]] = face_ND[rows, dimension_N[rows]]
        return points_ND

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            on_2D = np.stack([point_D == self.low_D, point_D == self.high_D])  # before any face moves
            for face, d in np.argwhere(on_2D):
                self._push(int(face), int(d), float(reward))

    def _push(self, face: int, d: int, reward: float) -> None:
        """Queue a return at the low (0) or high (1) face of parameter `d`, and decide once the queue is full."""
        self.queued_2DQ[face, d, self.count_2D[face, d]] = reward
        self.count_2D[face, d] += 1
        if self.count_2D[face, d] < self.config["queue"]:
            return
        self.count_2D[face, d] = 0
        mean = float(self.queued_2DQ[face, d].mean())
        outward = int(mean >= self.config["high"]) - int(mean <= self.config["low"])
        if face == 0:
            self.low_D[d] = np.clip(self.low_D[d] - outward * self.step_D[d], self.space.low_D[d], self.high_D[d])
        else:
            self.high_D[d] = np.clip(self.high_D[d] + outward * self.step_D[d], self.low_D[d], self.space.high_D[d])

    @property
    def metrics(self) -> dict[str, float]:
        """The share of each parameter's range that the box covers, on average and at least."""
        share_D = (self.high_D - self.low_D) / self.space.range_D
        return {"covered_mean": float(share_D.mean()), "covered_min": float(share_D.min())}
