"""Reinforcement, supervision and distillation in one optimiser step, each divided by its own counts.

    python examples/sum_of_losses.py [--model DIRECTORY] [--teacher DIRECTORY] [--steps 4]

Trains the built-in student on questions that it half knows, in seconds on a CPU; any model with a chat template takes the same ten lines.
For SASR, which takes one of two losses at each step, give `objective=objective("sasr", warmup_steps=2)`.
"""

from __future__ import annotations

import argparse
import math
import tempfile

import trl
from datasets import Dataset

from tutelage.objectives import On, Sum, objective
from tutelage.students import builtin_path
from tutelage.teachers import teacher
from tutelage.trainers.trl import with_curriculum

QUESTION = "Find the Greatest Common Divisor (GCD) of these numbers: {}, 18. Give only the GCD as your final answer."


def correct(completions: list, answer: list[str], **columns: object) -> list[float]:
    """1 where the reply is the answer."""
    return [float(reply[0]["content"] == meant) for reply, meant in zip(completions, answer, strict=True)]


def main(model: str, big: str, steps: int) -> list[dict[str, float]]:
    """Train, and return what was logged."""
    prompts = [[{"role": "user", "content": QUESTION.format(n)}] for n in range(1, 65)]
    answers = [str(math.gcd(n, 18)) for n in range(1, 65)]
    replies = [[{"role": "assistant", "content": answer}] for answer in answers]
    tasks = Dataset.from_dict({"prompt": prompts, "answer": answers})
    shown = Dataset.from_dict({"prompt": prompts[::4], "completion": replies[::4]})
    with tempfile.TemporaryDirectory() as run:
        config = trl.GRPOConfig(
            run, max_steps=steps, per_device_train_batch_size=32, num_generations=8, max_completion_length=4, learning_rate=1e-4,
            bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1, report_to="none",
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        # The ten lines: losses by name, with their weights; one of them on rows of its own, one against a teacher.
        losses = Sum(
            {
                "policy": (objective("grpo", kl_coef=0.0), 1.0),
                "imitate": (On("demonstrations", objective("nll")), 0.1),
                "distil": (objective("gkd"), 0.05),
            }
        )
        trainer = with_curriculum(trl.GRPOTrainer)(
            model, correct, args=config, train_dataset=tasks, objective=losses, demonstrations=shown, teacher=teacher("local", model=big)
        )
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(builtin_path()))
    parser.add_argument("--teacher", default=str(builtin_path()), help="of the same family as the model")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    for entry in main(args.model, args.teacher, args.steps):
        if "reward" in entry:
            names = ("reward", "objective/policy/loss", "objective/imitate/loss", "objective/distil/loss")
            print("  ".join(f"{name} {entry[name]:.4f}" for name in names))
