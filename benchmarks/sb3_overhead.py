"""How much slower Stable-Baselines3 trains a walker with a teacher than without one.

    python benchmarks/sb3_overhead.py [--algorithm ppo] [--steps 8192] [--pairs 6] [--slots 2] [--teacher alp-gmm] [--json]

The same training, with and without `with_curriculum`, in interleaved pairs within one run; reported are the median of the ratios of CPU
time per environment step, with its range. Without a teacher every episode runs on one task of middling difficulty; with one, on the
teacher's tasks, held (by `transform`) to that same task, so that both sides simulate the same terrain and episodes are as long. The
teacher lives its real life: it proposes, observes and fits. The target is a ratio of at most 1.03.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env

import tutelage as tt
import tutelage.environments
from tutelage.trainers.sb3 import CurriculumCallback, with_curriculum

TARGET = 1.03
TASK_D = np.array([0.5, 3.0])


class OneTask(gym.Wrapper):
    """Every episode on `TASK_D`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed, options={**(options or {}), "task": TASK_D})


def held(points_ND: np.ndarray) -> np.ndarray:
    return np.tile(TASK_D, (len(points_ND), 1))


def train(algorithm: str, steps: int, slots: int, teacher: str | None, seed: int) -> dict[str, float]:
    """CPU milliseconds per environment step of one training, its episodes left to the seed."""
    env = make_vec_env("tutelage/StumpTrack-v0", slots, seed=seed, wrapper_class=None if teacher else OneTask)
    if teacher:
        space = tutelage.environments.StumpTrack.task_space
        curriculum = tt.curriculum(teacher, space, seed=seed, **({"reward_range": (-150.0, 350.0)} if teacher == "alp-gmm" else {}))
        env = with_curriculum(env, curriculum, transform=held)
    if algorithm == "ppo":
        model: Any = PPO("MlpPolicy", env, n_steps=1024, batch_size=256, n_epochs=5, seed=seed, device="cpu")
    else:
        model = SAC("MlpPolicy", env, batch_size=256, train_freq=10, gradient_steps=10, seed=seed, device="cpu")
    start = time.process_time()
    model.learn(steps, callback=CurriculumCallback() if teacher else None)
    spent = time.process_time() - start
    episodes = env.episodes if teacher else sum(map(len, env.env_method("get_episode_lengths")))
    env.close()
    return {"ms_per_step": 1000 * spent / model.num_timesteps, "episodes": float(episodes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["ppo", "sac"], default="ppo")
    parser.add_argument("--steps", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--teacher", default="alp-gmm")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.algorithm, 256, args.slots, args.teacher, 99)  # imports and caches
    pairs = []
    for pair in range(args.pairs):
        sides = [None, args.teacher] if pair % 2 else [args.teacher, None]
        runs = {side: train(args.algorithm, args.steps, args.slots, side, pair) for side in sides}
        pairs.append({"with": runs[args.teacher], "without": runs[None]})
        if not args.json:
            one, other = (pairs[-1][side] for side in ("with", "without"))
            ratio = one["ms_per_step"] / other["ms_per_step"]
            counts = f"{one['episodes']:.0f} and {other['episodes']:.0f} episodes"
            print(
                f"pair {pair}: {one['ms_per_step']:.3f} ms/step with, {other['ms_per_step']:.3f} without, {ratio:.3f}; {counts}", flush=True
            )
    ratios = sorted(pair["with"]["ms_per_step"] / pair["without"]["ms_per_step"] for pair in pairs)
    result = {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "target": TARGET, "pairs": pairs}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        verdict = "ok" if result["ratio"] <= TARGET else "ABOVE"
        spread = f"from {ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(f"{args.algorithm} with {args.teacher}: ratio {result['ratio']:.3f} ({spread}); {verdict} {TARGET}")


if __name__ == "__main__":
    main()
