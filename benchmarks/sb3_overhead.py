"""How much slower Stable-Baselines3 trains a walker with a teacher than without one.

    python benchmarks/sb3_overhead.py [--algorithm ppo] [--steps 2048] [--pairs 40] [--slots 2] [--teacher alp-gmm] [--json]

Two trainings go side by side in one process, one with `with_curriculum` and one without, by turns of a PPO rollout of the usual length each
(interleaved pairs; shorter turns charge the teacher for the beginning of `learn`), so that whatever else the machine does falls on both.
Without a teacher every episode runs on one task of middling difficulty; with one, on the teacher's tasks, held (by `transform`) to that
same task: both sides then live the very same episodes, to the bit, which the benchmark checks. The teacher lives its real life: it
proposes, observes, fits every 50 episodes and is logged. Reported is the ratio of CPU times, pair by pair (median, with its 95 % bootstrap
interval) and in total. The target is a ratio of at most 1.03; on a machine that others use, single pairs differ by a fifth, so take many.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import sklearn.cluster  # noqa: F401 - loaded by the first fit, and no cost of training
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env

import tutelage as tt
from tutelage.environments import StumpTrack
from tutelage.trainers.sb3 import CurriculumCallback, with_curriculum

TARGET = 1.03
TASK_D = np.array([0.5, 3.0])


class OneTask(gym.Wrapper):
    """Every episode on `TASK_D`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed, options={**(options or {}), "task": TASK_D})


def held(points_ND: np.ndarray) -> np.ndarray:
    return np.tile(TASK_D, (len(points_ND), 1))


def begin(algorithm: str, steps: int, slots: int, teacher: str | None, seed: int) -> Any:
    """A model that has not trained yet, its episodes left to the seed."""
    env = make_vec_env("tutelage/StumpTrack-v0", slots, seed=seed, wrapper_class=None if teacher else OneTask)
    if teacher:
        settings: dict[str, Any] = {"fit_every": 50, "reward_range": (-150.0, 350.0)} if teacher == "alp-gmm" else {}
        env = with_curriculum(env, tt.curriculum(teacher, StumpTrack.task_space, seed=seed, **settings), transform=held)
    if algorithm == "ppo":
        return PPO("MlpPolicy", env, n_steps=steps // slots, batch_size=128, n_epochs=5, seed=seed, device="cpu")
    more = {"batch_size": 256, "train_freq": 8, "gradient_steps": 8, "learning_starts": 256, "buffer_size": 100_000}
    return SAC("MlpPolicy", env, **more, seed=seed, device="cpu")


class Side:
    """One of the two trainings. SB3 draws from torch's and numpy's global generators, so each side keeps their states to itself."""

    def __init__(self, algorithm: str, steps: int, slots: int, teacher: str | None, seed: int) -> None:
        self.model = begin(algorithm, steps, slots, teacher, seed)
        self.steps, self.callback = steps, CurriculumCallback() if teacher else None
        self.generators = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Train for so many more steps; the CPU seconds are kept."""
        torch.set_rng_state(self.generators[0])
        np.random.set_state(self.generators[1])  # noqa: NPY002
        start = time.process_time()
        self.model.learn(self.steps, callback=self.callback, reset_num_timesteps=False)
        self.seconds.append(time.process_time() - start)
        self.generators = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002


def episodes(model: Any) -> list[float]:
    """The returns of all episodes, slot by slot."""
    return [reward for slot in model.env.env_method("get_episode_rewards") for reward in slot]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["ppo", "sac"], default="ppo")
    parser.add_argument("--steps", type=int, default=2048, help="environment steps of a turn")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--teacher", default="alp-gmm")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    without, taught = (Side(args.algorithm, args.steps, args.slots, teacher, 0) for teacher in (None, args.teacher))
    for pair in range(args.pairs + 1):
        for side in (without, taught) if pair % 2 else (taught, without):
            side.turn()
    if episodes(without.model) != episodes(taught.model):
        raise SystemExit("The two sides lived different episodes; their times cannot be compared.")
    spent_P, bare_P = np.array(taught.seconds[1:]), np.array(without.seconds[1:])  # the first turn imports and fills caches
    ratio_P = spent_P / bare_P
    drawn_BP = np.random.default_rng(0).choice(ratio_P, (2000, len(ratio_P)))
    low, high = np.quantile(np.median(drawn_BP, axis=1), [0.025, 0.975]).tolist()
    median = float(np.median(ratio_P))
    result = {"ratio": median, "interval": [low, high], "total": float(spent_P.sum() / bare_P.sum()), "target": TARGET}
    result |= {"episodes": len(episodes(without.model)), "ms_per_step": float(1000 * bare_P.mean() / args.steps)}
    if args.json:
        print(json.dumps(result, indent=2))
        return
    spread = f"{low:.3f} to {high:.3f}; in total {result['total']:.3f}"
    print(f"{args.algorithm} with {args.teacher}: ratio {median:.3f} ({spread}); {'ok' if median <= TARGET else f'ABOVE {TARGET}'}")
    print(f"{result['episodes']} episodes on each side, {result['ms_per_step']:.3f} ms a step without a teacher")


if __name__ == "__main__":
    main()
