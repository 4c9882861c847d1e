"""A Stable-Baselines3 script whose walker gets a teacher: three changed lines, marked 1 to 3; without them it trains on random tasks.

    python examples/sb3_stump_track.py [STEPS] [FOLDER]

A bipedal walker learns the stump track (how high the stumps, how far apart) with PPO on four environments at once; ALP-GMM chooses the
task of each episode. Run again, it goes on where it stopped. It prints the share of a 5 x 5 grid of tasks that is mastered (a return
above 230); the default is a first look, and the walkers of the literature train for 20 million steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import tutelage as tt
from tutelage.environments import StumpTrack
from tutelage.trainers.sb3 import CurriculumCallback, evaluate, with_curriculum  # ------------------------------------------------ 1

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/stump_track")
space = StumpTrack.task_space
teacher = tt.curriculum("alp-gmm", space, seed=0, reward_range=(-150.0, 350.0))
teacher.log_to(folder / "trace.jsonl")  # optional: what was proposed, what came back, when

env = make_vec_env("tutelage/StumpTrack-v0", n_envs=4, seed=0)
saved = folder / "curriculum.npz"
env = with_curriculum(env, teacher, resume=saved if saved.exists() else None)  # --------------------------------------------------- 2
settings = {"n_steps": min(1024, max(32, steps // 4)), "batch_size": 128, "n_epochs": 5, "learning_rate": 3e-4, "seed": 0, "device": "cpu"}
model = PPO.load(folder / "model", env=env, device="cpu") if saved.exists() else PPO("MlpPolicy", env, **settings)
model.learn(steps, callback=CurriculumCallback(), reset_num_timesteps=False)  # ---------------------------------------------------- 3
model.save(folder / "model")
env.save_curriculum(saved)

height_M, spacing_M = np.meshgrid(*(np.linspace(low, high, 5) for low, high in zip(space.low_D, space.high_D, strict=True)))
grid_ND = np.stack([height_M.ravel(), spacing_M.ravel()], axis=1)
reward_NG, solved_NG = evaluate(model, make_vec_env("tutelage/StumpTrack-v0", n_envs=4, seed=1), grid_ND)
print(f"{env.episodes} episodes, {env.steps} steps; mean return on the grid {reward_NG.mean():.1f}, mastered {np.mean(solved_NG):.0%}")
