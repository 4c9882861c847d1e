"""GoalGAN: a generative adversarial network of tasks that the student solves sometimes, but not always.

Source: Florensa, Held, Geng, Abbeel, "Automatic goal generation for reinforcement learning agents" (ICML 2018, arXiv 1705.06366), in the
form of TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815).

    next task: with probability 0.2 a mastered one plus noise, else a generated one plus noise, `rollouts` times in a row
    after `rollouts` results of a generated task, with success rate s:
        label 0.25 <= s <= 0.75;   s > 0.75: mastered, remembered if farther than 0.01 |range| from all that are
    every 100 labelled tasks: 250 alternations of an LSGAN on them, if any label is true; then they are forgotten
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._gaussian import stated_gaussian
from tutelage.curricula._spaces import LEDGER, Float, Range, SpaceCurriculum
from tutelage.curricula.neural._lsgan import LSGAN
from tutelage.errors import TutelageError, unknown
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace

_LOW, _HIGH = 0.25, 0.75
_PRETRAINED_ON = 1000


@curricula.register("goal-gan")
class GoalGAN(SpaceCurriculum):
    """Points from a GAN of tasks of intermediate difficulty, and mastered ones again (GoalGAN; arXiv 1705.06366; needs torch).

    success: return above which an episode counts as solved (TeachMyAgent's walker: 230). noise: standard deviation of what is added to a
    task, as a share of each side. distance: of a newly mastered task from all others, as a share of the length of the space's diagonal.
    update: labelled tasks per training. rollouts: results per generated task. replay: probability of a mastered task. pretrain: iterations
    on 1,000 draws of an initial Gaussian before the first task (the benchmark: 500). initial_mean, initial_std: of that Gaussian, in the
    parameters' units; None, a uniformly drawn mean and a tenth of each side. generator, discriminator: hidden widths. iterations,
    learning_rate: of a training. generated: "space", the generator's range (-1, 1)^D is the space; "twice", as released, it is twice
    as long as each side, and what falls outside is clipped. reward_range: see `alp-gmm`; `success` then is in [0, 1]. The benchmark's tuned
    values are noise 0.1, replay 0.1 and pretrain 500.

    Departures: one generator of chance, Glorot-uniform first weights, RMSProp with torch's constants; several attempts in one row of a
    lesson are one result, with their mean return; of generated tasks whose episodes never come back all but the last 4,096 are forgotten.
    """

    name = "goal-gan"
    memory = ("network", "queue_QD", "pending_PD", "count_P2", "mastered_MD", "task_LD", "label_L", "trainings")

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        success: float = 230.0,
        noise: float = 0.01,
        distance: float = 0.01,
        update: int = 100,
        rollouts: int = 2,
        replay: float = 0.2,
        pretrain: int = 0,
        initial_mean: tuple[float, ...] | None = None,
        initial_std: tuple[float, ...] | None = None,
        generator: tuple[int, ...] = (256, 256),
        discriminator: tuple[int, ...] = (128, 128),
        iterations: int = 250,
        learning_rate: float = 1e-3,
        generated: Literal["space", "twice"] = "space",
        reward_range: Range = None,
    ) -> None:
        counts, widths = {"update": update, "rollouts": rollouts, "iterations": iterations}, (*generator, *discriminator)
        if min(*counts.values(), *widths, 1) < 1 or pretrain < 0 or not 0 <= replay <= 1:
            raise TutelageError(
                "goal-gan: update, rollouts, iterations and hidden widths must be at least 1, pretrain at least 0, replay in [0, 1]; got "
                f"{counts}, widths {widths}, pretrain={pretrain}, replay={replay}."
            )
        if not (np.isfinite(success) and noise >= 0 and distance >= 0 and learning_rate > 0):
            raise TutelageError(
                "goal-gan: success must be finite, noise and distance at least 0, learning_rate above 0; got "
                f"success={success}, noise={noise}, distance={distance}, learning_rate={learning_rate}."
            )
        if generated not in ("space", "twice"):
            raise unknown("generated of goal-gan", generated, ("space", "twice"))
        vectors = {"initial_mean": initial_mean, "initial_std": initial_std}
        config: dict[str, Any] = {name: None if vector is None else [float(x) for x in vector] for name, vector in vectors.items()}
        config |= {"success": success, "noise": noise, "distance": distance, **counts, "replay": replay, "pretrain": pretrain}
        config |= {"generator": list(generator), "discriminator": list(discriminator)}
        config |= {"learning_rate": learning_rate, "generated": generated}
        super().__init__(space, seed=seed, config=config, reward_range=reward_range)
        self.side = {"space": 2.0, "twice": 1.0}[generated]  # of the space, in the generator's units
        d, layers = self.space.dimensions, {"generator": list(generator), "discriminator": list(discriminator)}
        self.gan = LSGAN(d, self.rng, learning_rate=learning_rate, **layers)
        self.queue_QD = np.zeros((0, d))  # a generated task's further rollouts
        self.pending_PD, self.count_P2 = np.zeros((0, d)), np.zeros((0, 2), dtype=np.int64)  # generated tasks; results, successes
        self.mastered_MD = np.zeros((0, d))
        self.task_LD, self.label_L, self.trainings = np.zeros((0, d)), np.zeros(0, dtype=bool), 0
        if pretrain:
            self._pretrain(pretrain)

    def _pretrain(self, iterations: int) -> None:
        drawn_D = self.space.sample(1, self.rng)[0]
        stated_D, std_D = stated_gaussian(self.space, self.config["initial_mean"], self.config["initial_std"], name="goal-gan: initial")
        mean_D = drawn_D if stated_D is None else stated_D
        draw_ND = self.space.clip(mean_D + std_D * self.rng.standard_normal((_PRETRAINED_ON, self.space.dimensions)))
        self.gan.train(self._inside(draw_ND), np.ones(_PRETRAINED_ON, dtype=bool), iterations, self.rng)

    def _inside(self, points_ND: Float) -> Float:
        """Points of the space as the networks see them, in [-1, 1]^D."""
        return self.side * (points_ND - (self.space.low_D + self.space.high_D) / 2) / self.space.range_D

    def _outside(self, x_ND: Float) -> Float:
        """What the networks made, in the parameters' units."""
        return (self.space.low_D + self.space.high_D) / 2 + x_ND / self.side * self.space.range_D

    def _noisy(self, point_D: Float) -> Float:
        noise_D = self.config["noise"] * self.space.range_D * self.rng.standard_normal(self.space.dimensions)
        return self.space.clip(point_D + noise_D) + 0.0

    def _propose(self, n: int) -> Float:
        return np.stack([self._next() for _ in range(n)])

    def _next(self) -> Float:
        if len(self.queue_QD):
            point_D, self.queue_QD = self.queue_QD[0], self.queue_QD[1:]
            return point_D
        if len(self.mastered_MD) and self.rng.random() < self.config["replay"]:
            return self._noisy(self.mastered_MD[self.rng.integers(len(self.mastered_MD))])
        point_D = self._noisy(self._outside(self.gan.sample(1, self.rng)[0]))
        self.queue_QD = np.repeat(point_D[None], self.config["rollouts"] - 1, axis=0)
        self.pending_PD = np.concatenate([self.pending_PD, point_D[None]])[-LEDGER:]
        self.count_P2 = np.concatenate([self.count_P2, [[0, 0]]])[-LEDGER:]
        return point_D

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for point_D, reward in zip(points_ND, reward_N, strict=True):
            waiting = np.flatnonzero((self.pending_PD == point_D).all(axis=1))
            if not len(waiting):  # a mastered task: nothing is learned from it
                continue
            self.count_P2[waiting[0]] += (1, int(reward > self.config["success"]))
            results, solved = self.count_P2[waiting[0]]
            if results == self.config["rollouts"]:
                self.pending_PD = np.delete(self.pending_PD, waiting[0], axis=0)
                self.count_P2 = np.delete(self.count_P2, waiting[0], axis=0)
                self._label(point_D, solved / results)
                if len(self.label_L) == self.config["update"]:
                    self._train()

    def _label(self, point_D: Float, rate: float) -> None:
        self.task_LD = np.concatenate([self.task_LD, point_D[None]])
        self.label_L = np.append(self.label_L, _LOW <= rate <= _HIGH)
        if rate > _HIGH:
            least = self.config["distance"] * np.linalg.norm(self.space.range_D)
            if (np.linalg.norm(self.mastered_MD - point_D, axis=1) > least).all():
                self.mastered_MD = np.concatenate([self.mastered_MD, point_D[None]])

    def _train(self) -> None:
        if self.label_L.any():
            self.gan.train(self._inside(self.task_LD), self.label_L, self.config["iterations"], self.rng)
            self.trainings += 1
        self.task_LD, self.label_L = self.task_LD[:0].copy(), self.label_L[:0].copy()

    @property
    def network(self) -> list[NDArray[np.float32]]:
        """Weights and optimiser state, as the curriculum's state keeps them."""
        return self.gan.arrays

    @network.setter
    def network(self, arrays: list[NDArray[np.float32]]) -> None:
        self.gan.arrays = arrays

    @property
    def metrics(self) -> dict[str, float]:
        share = float(self.label_L.mean()) if len(self.label_L) else 0.0
        return {"mastered_tasks": float(len(self.mastered_MD)), "trainings": float(self.trainings), "intermediate": share}
