"""One thin adapter per engine. Each is imported on its own, for each needs its engine: `from tutelage.trainers.trl import with_curriculum`.

| engine | adapter | what it takes |
|---|---|---|
| TRL (GRPO, SFT and their subclasses) | `tutelage.trainers.trl.with_curriculum` | a curriculum, an objective, a teacher, demonstrations |
| TRL (DPO and its subclasses) | `tutelage.trainers.dpo.with_objective` | an objective of pairs, references as columns |
| the same, in rounds | `tutelage.trainers.self_play.self_play` | demonstrations: SPIN, TPAW and their ablations |
| Stable-Baselines3 (any of its algorithms) | `tutelage.trainers.sb3.with_curriculum` | a curriculum over a space of tasks |
| plain torch, for small students that are no language models | `tutelage.trainers.torch_loop.train` | a curriculum |

The engine owns the process, the model, the optimiser and the launch. An adapter decides which rows come next, reports what came back, and
saves what a resumed run needs to decide as an unbroken one.
"""
