"""Oracle: a window that an expert sends from the easy corner to the hard one, whenever the student masters where it stands.

Source: the hand-made teacher of Portelas et al. (CoRL 2019, arXiv 1910.07224), an upper reference for teachers that know nothing.

    window of width (high - low) / 6 per parameter; starts at low where step > 0, else at high - width
    next task: uniform in the window;  every 50 episodes: if their mean return > 230, the window moves by `step`, kept inside the space
"""

from __future__ import annotations

import numpy as np

from tutelage.curricula._spaces import Float, Range, SpaceCurriculum
from tutelage.errors import TutelageError
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace


@curricula.register("oracle")
class Oracle(SpaceCurriculum):
    """An expert's window that moves from easy to hard as it is mastered (arXiv 1910.07224).

    step: how far the window moves in each parameter, signed, in the parameter's units, positive where larger is harder; None, a thirtieth
    of each side upwards (the source's +0.1 of a stump's 3). width: of the window, as a share of each side. every: episodes between
    decisions. threshold: mean raw return above which the window moves (the source's walker: 230). reward_range: see `alp-gmm`; the
    threshold then is in [0, 1], where the source always compares raw returns.
    """

    name = "oracle"
    memory = ("corner_D", "total", "episodes")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        step: tuple[float, ...] | None = None,
        width: float = 1 / 6,
        every: int = 50,
        threshold: float = 230.0,
        reward_range: Range = None,
    ) -> None:
        if not 0 < width <= 1 or every < 1:
            raise TutelageError(f"oracle: width must lie in (0, 1] and every be at least 1; got width={width}, every={every}.")
        if not np.isfinite(threshold):
            raise TutelageError(f"oracle: threshold must be finite; got {threshold}.")
        given = None if step is None else [float(s) for s in step]
        config = {"step": given, "width": width, "every": every, "threshold": threshold}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        self.step_D = self.space.range_D / 30 if given is None else np.array(given)
        if self.step_D.shape != (self.space.dimensions,) or not np.isfinite(self.step_D).all():
            raise TutelageError(f"oracle: step needs one finite number for each of {', '.join(self.space.names)}; got {given}.")
        self.width_D = width * self.space.range_D
        self.corner_D = np.where(self.step_D > 0, self.space.low_D, self.space.high_D - self.width_D)
        self.total, self.episodes = 0.0, 0  # returns since the last decision, and how many

    def _propose(self, n: int) -> Float:
        return self.space.clip(self.corner_D + self.rng.random((n, self.space.dimensions)) * self.width_D)

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for reward in reward_N:
            self.total += float(reward)
            self.episodes += 1
            if self.episodes == self.config["every"]:
                if self.total / self.episodes > self.config["threshold"]:
                    self.corner_D = np.clip(self.corner_D + self.step_D, self.space.low_D, self.space.high_D - self.width_D)
                self.total, self.episodes = 0.0, 0

    @property
    def metrics(self) -> dict[str, float]:
        """How far the window has come from the easy corner to the hard one, on average over the parameters that move."""
        free_D = self.space.range_D - self.width_D
        share_D = (self.corner_D - self.space.low_D) / np.where(free_D > 0, free_D, 1.0)
        came_D = np.where(self.step_D > 0, share_D, 1 - share_D)[self.step_D != 0]
        return {"progress": float(came_D.mean()) if len(came_D) else 0.0}
