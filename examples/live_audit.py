"""A reward with a hole, and an audit that watches the training and stops it: three lines in a script for plain TRL.

    python examples/live_audit.py

The built-in student trains by GRPO on greatest common divisors. Beside the verifier there is a bonus for wavering, such as a careless
rubric may hold: one and a half points for an answer in which a sign stands twice. Failed attempts are then paid best in some groups. The
audit reads the rollout log as it grows, warns, and stops the run at its first finding of high severity. Fifteen seconds of one core gave

    audit rewards at step 13: misranked (high): 18.7% of 75: mixed groups whose best paid attempt is a failed one (threshold 5%)
    stopped at step 13 of 40; the page is runs/live_audit.html

and the page shows the attempts that were paid for nothing. Delete runs/live_audit.jsonl before you run it again: a log is appended to.
"""

from __future__ import annotations

import logging
from typing import Any

import trl

from tutelage.audits.live import LiveAudit, RewardLog  # 1
from tutelage.tasks.loaders import load_tasks, to_dataset
from tutelage.tasks.rewards import VerifierReward, completion_text
from tutelage.teachers import teacher

logging.basicConfig(format="%(message)s", level=logging.WARNING)
tasks, student = load_tasks(["rg:gcd"]), teacher("local", model="builtin")


def wavering(completions: list[Any], **columns: Any) -> list[float]:
    """The careless bonus."""
    return [1.5 * (len(set(completion_text(completion))) < len(completion_text(completion))) for completion in completions]


right = VerifierReward(tasks.verifier)
log = RewardLog("runs/live_audit.jsonl", solved=right.__name__)  # 2
settings = trl.GRPOConfig(
    output_dir="runs/live_audit", max_steps=40, per_device_train_batch_size=64, num_generations=8, max_completion_length=12,
    learning_rate=2e-4, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, bf16=False, use_cpu=True,
    gradient_checkpointing=False,
)  # fmt: skip
trainer = trl.GRPOTrainer(
    student.model, log.around([right, wavering]), args=settings, train_dataset=to_dataset(tasks.train, student.tokenizer),
    processing_class=student.tokenizer, callbacks=[LiveAudit(log.path, stop_at="high", page="runs/live_audit.html")],  # 3
)  # fmt: skip
trainer.train()
print(f"stopped at step {trainer.state.global_step} of 40; the page is runs/live_audit.html")
