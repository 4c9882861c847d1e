"""The suite `acl-walker`: walkers on the stump track, trained by Stable-Baselines3, in TeachMyAgent's challenge profiles.

Source: TeachMyAgent (Romac et al., ICML 2021, arXiv 2103.09815): 20 million steps, 100 test tasks every 500,000, SAC with networks of 400
and 300 units or PPO with 20,000 samples an update, sixteen seeds. The defaults here are what two cores do in an evening, a few hundred
times less, and walkers of that size master next to nothing: they show that everything works, not which teacher is better. The source's:

    --suite acl-walker --set steps=20000000 --set evaluations=40 --set grid=10 --set samples=20000 --set batch=1000

The test tasks are always a grid over heights in [0, 3] and spacings in [0, 6], mastered by a return above 230.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tutelage.curricula._spaces import SpaceCurriculum
from tutelage.spaces import ShuffledBox, TaskSpace
from tutelage.study.acl.profiles import Expert, Lessons, Tell
from tutelage.study.config import Strict
from tutelage.traces import read_trace

Float = NDArray[np.float64]
Algorithm = Literal["ppo", "sac"]

PROFILES = {
    "base": "stumps up to 3 high, up to 6 apart",
    "unfeasible": "mostly unfeasible: stumps up to 9 high",
    "trivial": "mostly trivial: heights from -3, where negative ones are flat",
    "forgetful": "the student begins anew once, after 35 % of its steps",
    "rugged": "each side is cut in four slices that have changed places",
    "diverse": "four students in turn, seed by seed: small walkers and spiders, each by PPO and by SAC",
}
FORGETS_AT = 0.35
RETURNS = [-150.0, 350.0]  # a list, as configurations come back from JSON
MASTERY = 230.0
NAMES = ("stump_height", "spacing")
TESTED = TaskSpace([0.0, 0.0], [3.0, 6.0], names=NAMES)
SHOWN = ((0.0, 6.0), (0.5, 4.0), (1.0, 3.0))
"""Tasks of which the report shows the walker: flat, low and high stumps."""
_TESTS, _ASKED, _ANEW = 10_000, 20_000, 30_000  # streams of seeds, apart from those of training


class Sizes(Strict):
    """How long a walker trains, in environment steps, and how it is tested.

    evaluations: points of the curve after the first. grid: test tasks per side. slots: environments at once. samples: of one update of
    PPO, over all slots. batch: of both algorithms. algorithm: of all profiles but "diverse".
    """

    steps: int = Field(50_000, ge=1)
    evaluations: int = Field(2, ge=1)
    grid: int = Field(5, ge=2)
    slots: int = Field(4, ge=1)
    samples: int = Field(2048, ge=64)
    batch: int = Field(64, ge=2)
    algorithm: Algorithm = "ppo"


class WalkerRoom:
    """One walker. `run` trains it; `keep` then writes what it leaves behind."""

    def __init__(
        self,
        sizes: Sizes,
        seed: int,
        *,
        space: TaskSpace = TESTED,
        view: ShuffledBox | None = None,
        body: str = "default",
        algorithm: Algorithm | None = None,
        forgets: bool = False,
    ) -> None:
        self.sizes, self.seed, self.space, self.view = sizes, seed, space, view
        self.body, self.algorithm, self.forgets = body, algorithm or sizes.algorithm, forgets
        easy_D = np.array([0.0, space.high_D[1]])
        seen_D = easy_D if view is None else view.inverse(easy_D[None])[0]
        self.expert = Expert(
            success=MASTERY,
            falls=0.0,
            rises=180.0,
            easy_mean=tuple(seen_D.tolist()),
            easy_std=tuple((0.1 * space.range_D).tolist()),
            harder=(0.1, -0.2),
        )
        self.model: Any = None
        self.trace = b""

    def run(self, teacher: SpaceCurriculum, tell: Tell) -> Lessons:
        """Train the walker with a teacher, and test it as it goes."""
        import torch

        from tutelage.trainers.sb3 import with_curriculum

        torch.set_num_threads(1)  # networks this small are slower on more, and one thread gives the same walker everywhere
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.jsonl"
            teacher.log_to(path)
            transform = None if self.view is None else self.view.forward
            asked = self._environments(self.space, _ASKED) if "tests" in teacher.asks else None
            env = with_curriculum(self._environments(self.space, 0), teacher, transform=transform, test_env=asked)
            tests = self._environments(TESTED, _TESTS)
            done, mastered, totals = self._lessons(env, tests, tell)
            self.trace, trace = path.read_bytes(), read_trace(path)
            for used in (env, tests, asked):
                if used is not None:
                    used.close()
        totals |= {"seconds": time.process_time() - began, "episodes": float(env.episodes), "steps": float(env.steps)}
        back_M = np.isfinite(trace.reward_M)
        return Lessons(done, mastered, trace.point_MD[back_M], trace.reward_M[back_M], totals)

    def _lessons(self, env: Any, tests: Any, tell: Tell) -> tuple[list[int], list[float], dict[str, float]]:
        """Train to the end: environment steps and mastered share at each test, and what the tests cost and showed last."""
        from tutelage.trainers.sb3 import CurriculumCallback, evaluate

        steps, forgets_at = self.sizes.steps, round(FORGETS_AT * self.sizes.steps) if self.forgets else -1
        marks = {round(steps * i / self.sizes.evaluations) for i in range(self.sizes.evaluations + 1)}
        done, mastered, testing, reward_NG = list[int](), list[float](), 0.0, np.zeros((0, 1))
        self.model = self._student(env, self.seed)
        for stop in sorted(marks | ({forgets_at} if self.forgets else set())):
            if stop > env.steps:
                self.model.learn(stop - env.steps, callback=CurriculumCallback(), reset_num_timesteps=False)
            if stop in marks:
                start = time.process_time()
                reward_NG, solved_NG = evaluate(self.model, tests, grid_of(TESTED, self.sizes.grid), mastery=MASTERY)
                testing += time.process_time() - start
                done, mastered = [*done, env.steps], [*mastered, float(np.mean(solved_NG))]  # type: ignore[arg-type]
                lately = [episode["r"] for episode in self.model.ep_info_buffer or ()]
                reward = float(np.mean(lately)) if lately else 0.0
                tell({"step": env.steps, "share": stop / steps, "reward": reward, "accuracy": mastered[-1]})
            if stop == forgets_at:
                self.model = self._student(env, self.seed + _ANEW)
        return done, mastered, {"test_seconds": testing, "test_return": float(reward_NG.mean())}

    def keep(self, folder: Path) -> list[Path]:
        """Write the trained model, the curriculum's trace and a GIF of each of the tasks `SHOWN`; returns the files."""
        from tutelage.environments import StumpTrack, film

        folder.mkdir(parents=True, exist_ok=True)
        self.model.save(folder / "model.zip")
        (folder / "trace.jsonl").write_bytes(self.trace)
        films = []
        for task_D in SHOWN:
            env = StumpTrack(body=self.body, space=TESTED, render_mode="rgb_array")
            films.append(film(env, self.model, task_D, folder / f"height_{task_D[0]:g}_spacing_{task_D[1]:g}.gif", every=4, width=240))
        return [folder / "model.zip", folder / "trace.jsonl", *(shot.path for shot in films)]

    def _environments(self, space: TaskSpace, stream: int) -> Any:
        from stable_baselines3.common.env_util import make_vec_env

        import tutelage.environments  # noqa: F401 - registers the track

        settings = {"body": self.body, "space": space}
        return make_vec_env("tutelage/StumpTrack-v0", self.sizes.slots, seed=self.seed + stream, env_kwargs=settings)

    def _student(self, env: Any, seed: int) -> Any:
        """A fresh student, with the source's networks and rates."""
        from stable_baselines3 import PPO, SAC

        batch = min(self.sizes.batch, self.sizes.samples)
        if self.algorithm == "ppo":
            per_slot = max(2, self.sizes.samples // self.sizes.slots)
            return PPO(
                "MlpPolicy", env, n_steps=per_slot, batch_size=batch, n_epochs=5, learning_rate=3e-4, clip_range=0.2, gae_lambda=0.95,
                ent_coef=0.0, policy_kwargs={"net_arch": [64, 64]}, seed=seed, device="cpu",
            )  # fmt: skip
        return SAC(
            "MlpPolicy", env, learning_rate=1e-3, ent_coef=0.005, batch_size=batch, buffer_size=min(2_000_000, self.sizes.steps),
            train_freq=10, gradient_steps=10, learning_starts=min(10_000, self.sizes.steps // 10), policy_kwargs={"net_arch": [400, 300]},
            seed=seed, device="cpu",
        )  # fmt: skip


class WalkerSuite:
    """The walkers: see the module."""

    name = "acl-walker"
    title = "Walkers on the stump track"
    unit = "environment steps"
    profiles: Mapping[str, str] = PROFILES
    sizes = Sizes
    tuned: Mapping[str, Mapping[str, Any]] = {
        "alp-gmm": {"fit_every": 50, "random_share": 0.05, "min_components": 2, "max_components": 4, "reward_range": RETURNS},
        "covar-gmm": {"fit_every": 50, "random_share": 0.1, "min_components": 2, "max_components": 4, "reward_range": RETURNS},
        "riac": {"window": 50, "attempts": 75, "min_side": 0.1, "reward_range": RETURNS},
        "adr": {"boundary_share": 0.7, "step": 0.1},
        "goal-gan": {"noise": 0.1, "replay": 0.1},
        "self-paced": {"update_every": 25, "update_offset": 50, "alpha_offset": 10, "zeta": 0.25, "max_kl": 0.1, "performance": "return"},
        "setter-solver": {"update": 50, "noise": 0.1, "hidden": 64},
    }

    def room(self, profile: str, seed: int, sizes: Sizes) -> WalkerRoom:
        """The walker of a seed."""
        if profile == "unfeasible":
            return WalkerRoom(sizes, seed, space=TaskSpace([0.0, 0.0], [9.0, 6.0], names=NAMES))
        if profile == "trivial":
            return WalkerRoom(sizes, seed, space=TaskSpace([-3.0, 0.0], [3.0, 6.0], names=NAMES))
        if profile == "rugged":
            return WalkerRoom(sizes, seed, view=ShuffledBox(TESTED, cuts=4, seed=seed))
        if profile == "diverse":
            algorithm: Algorithm = "sac" if seed // 2 % 2 else "ppo"
            return WalkerRoom(sizes, seed, body="spider" if seed % 2 else "small-bipedal", algorithm=algorithm)
        return WalkerRoom(sizes, seed, forgets=profile == "forgetful")


def grid_of(space: TaskSpace, side: int) -> Float:
    """side x side points from corner to corner of a space of two parameters."""
    height_M, spacing_M = np.meshgrid(*(np.linspace(low, high, side) for low, high in zip(space.low_D, space.high_D, strict=True)))
    return np.stack([height_M.ravel(), spacing_M.ravel()], axis=1)
