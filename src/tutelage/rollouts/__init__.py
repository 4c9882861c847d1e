"""Rollout logs: what a policy wrote and what it got for it, one row per attempt, as JSON Lines or Parquet.

    from tutelage.rollouts import RolloutReader, RolloutWriter

    with RolloutWriter("rollouts.jsonl") as log:
        log.write({"step": 0, "prompt_id": "7", "completion": "4", "reward": 1.0, "solved": 1.0})
    reader = RolloutReader("rollouts.jsonl")
    for chunk in reader:
        chunk.reward_B, chunk.solved_B, chunk.columns.get("tokens")
    reader.warnings

A log has the columns `step` (of the optimiser, from 0), `prompt_id`, `completion`, `reward` (what was optimised) and `solved` (the
verifier's judgement before any shaping, in [0, 1]; null where there is none). It may have `prompt`, `group` (attempts that were compared
with each other; by default those at one prompt in one step), `tokens` (ids of the completion, or their number), `logprobs`, `source`,
`span` (what the verifier read: first sign and the one after the last), `kl` and `entropy` (means over the completion's tokens, in nats;
kl from the reference policy), and each term of the reward as `reward/<name>`. `logprobs` has one number for each token.

`from_trl` and `from_verl` make such a log of what those engines dump (`convert_log` tells them apart). A `tutelage` trainer writes one with
the lesson callback `tutelage.trainers.rollout_log.RolloutLog`, any GRPO trainer of TRL with `tutelage.trainers.reward_log.RewardLog`.
"""

from __future__ import annotations

from tutelage.rollouts.columns import OPTIONAL, REQUIRED, Chunk
from tutelage.rollouts.convert import convert_log, from_trl, from_verl
from tutelage.rollouts.reader import RolloutReader
from tutelage.rollouts.writer import RolloutWriter

__all__ = ["OPTIONAL", "REQUIRED", "Chunk", "RolloutReader", "RolloutWriter", "convert_log", "from_trl", "from_verl"]
