"""`objective=`: the loss of an objective inside TRL is TRL's own where both define the same one, however the batch is cut."""
# ruff: noqa: E402

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch

import tiny
from test_trl_ranks import raised, two_ranks
from test_trl_refill import Admit
from tutelage.errors import TutelageError
from tutelage.objectives.compose import Sum, TokenAverage
from tutelage.objectives.policy_gradient import PolicyGradient
from tutelage.trainers.trl import with_curriculum

Trainer = with_curriculum(trl.GRPOTrainer)
GRPO = PolicyGradient(advantage_eps=1e-4)
DAPO = PolicyGradient(advantage_eps=1e-4, aggregation="token_mean", clip_high=0.28)
DR_GRPO = PolicyGradient(advantage="group_mean", aggregation="seq_mean_token_sum_norm")


def make(path: Path, *, objective: Any = None, curriculum: Any = "uniform", **options: Any) -> Any:
    data, pool = tiny.tasks()
    cur = tt.curriculum(curriculum, pool, seed=5) if isinstance(curriculum, str) else curriculum
    ours = {k: options.pop(k) for k in ("refill_cap", "on_short", "eval_dataset") if k in options}
    model = options.pop("model", None) or tiny.model()
    return Trainer(
        model, [tiny.digits, tiny.has_a], args=tiny.grpo_config(path, **options), train_dataset=data, processing_class=tiny.tokenizer(),
        curriculum=cur, objective=objective, **ours,
    )  # fmt: skip


def final(path: Path, **options: Any) -> np.ndarray:
    made = make(path, **options)
    made.train()
    return tiny.weights(made.model).view(np.float32)


KL = PolicyGradient(advantage_eps=1e-4, kl_coef=0.2, kl_importance=True)
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "grpo": ({"loss_type": "grpo"}, GRPO),
    "accumulated": ({"loss_type": "grpo", "gradient_accumulation_steps": 2}, GRPO),
    "reused": ({"loss_type": "grpo", "num_iterations": 3, "steps_per_generation": 2}, GRPO),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28, "gradient_accumulation_steps": 2, "steps_per_generation": 4}, DAPO),
    "several generations": ({"loss_type": "dapo", "epsilon_high": 0.28, "gradient_accumulation_steps": 4, "steps_per_generation": 2}, DAPO),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, DR_GRPO),
    "reference": ({"loss_type": "grpo", "beta": 0.2, "num_iterations": 2}, KL),
    "no curriculum": ({"loss_type": "grpo", "curriculum": None}, GRPO),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_loss_trains_the_same(tmp_path: Path, case: str) -> None:
    options, objective = CASES[case]
    if "beta" in options:
        options = {**options, "model": tiny.saved(tmp_path / "model")}
    theirs, ours = final(tmp_path, **options), final(tmp_path, objective=objective, **options)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    start = tiny.weights(tiny.model()).view(np.float32)
    assert np.abs(theirs - start).max() > 1e-2


@pytest.mark.parametrize("on_short", ["pad", "partial"])
def test_refilled_batches(tmp_path: Path, on_short: str) -> None:
    found = [
        final(
            tmp_path, loss_type="grpo", per_device_train_batch_size=16, on_short=on_short, refill_cap=2, objective=objective,
            curriculum=Admit(tiny.tasks()[1], "x.x....x..."),
        )
        for objective in (None, GRPO)
    ]  # fmt: skip
    np.testing.assert_allclose(*found, atol=2e-4)


def _two(path: Path, objective: Any) -> np.ndarray:
    options = {"loss_type": "dapo", "epsilon_high": 0.28, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}
    return final(path, objective=objective, **options)


def test_two_ranks(tmp_path: Path) -> None:
    theirs, ours = (raised(two_ranks(_two, tmp_path, objective)) for objective in (None, DAPO))
    np.testing.assert_array_equal(*ours)
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-4)


def test_sums_whitened_advantages_and_stats(tmp_path: Path) -> None:
    whitened = PolicyGradient(advantage="group_mean_whiten", aggregation="group_token_mean")
    made = make(
        tmp_path, objective=Sum({"policy": (GRPO, 1.0), "entropy": (TokenAverage(key="entropy_BT"), -0.01)}), gradient_accumulation_steps=2
    )
    made.train()
    logged = [h["objective/entropy/mean"] for h in made.state.log_history if "objective/entropy/mean" in h]
    assert len(logged) == 4
    assert logged[0] == pytest.approx(np.log(43), rel=0.05)
    made = make(tmp_path, objective=whitened)
    batch = made.prepared(*(lambda r: (r.batch, r.reward_BF))(_rolled(made)), 4)
    assert batch["advantages"].shape == batch["completion_mask"].shape
    kept = batch["advantages"][batch["completion_mask"].bool()]
    assert kept.mean().item() == pytest.approx(0, abs=1e-5)
    assert kept.std().item() == pytest.approx(1, abs=1e-4)
    length = batch["completion_mask"].sum(1).view(2, 4).sum(1)
    torch.testing.assert_close(batch["group_tokens"], length.repeat_interleave(4))
    made.train()
    assert made.ledger.updates == 4


def test_a_penalty_in_the_reward_is_on_policy_too(tmp_path: Path) -> None:
    rloo = PolicyGradient(advantage="leave_one_out", ratio="seq_sum", kl="k1", kl_coef=0.05, kl_placement="reward")
    made = make(tmp_path, objective=rloo, beta=0.1, model=tiny.saved(tmp_path / "model"))
    made.train()
    assert made.ledger.updates == 4


def _rolled(made: Any) -> Any:
    made.model.train()
    return made.roll_out(np.arange(2), 4)


def test_evaluation_with_an_objective(tmp_path: Path) -> None:
    made = make(tmp_path, objective=GRPO, eval_dataset=tiny.tasks(8)[0], per_device_eval_batch_size=8)
    made.train()
    assert np.isfinite(made.evaluate()["eval_loss"])


def test_what_an_objective_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match=r"reads ref_logp_BT, which GRPO does not have\. .*beta above 0"):
        make(tmp_path, objective=PolicyGradient(kl_coef=0.1))
    with pytest.raises(TutelageError, match="reads teacher_BT"):
        make(tmp_path, objective=TokenAverage(key="teacher_BT"))
    with pytest.raises(TutelageError, match="reads advantage_B, which SFT does not have"):
        with_curriculum(trl.SFTTrainer)(
            tiny.model(), args=tiny.sft_config(tmp_path), train_dataset=tiny.tasks()[0].rename_column("prompt", "text"),
            processing_class=tiny.tokenizer(), objective=GRPO,
        )  # fmt: skip


@pytest.mark.parametrize("curriculum", [None, "uniform"])
def test_supervised_likelihood_is_trls(tmp_path: Path, curriculum: str | None) -> None:
    data, pool = tiny.tasks()
    data = data.map(lambda row: {"completion": "ab" * (1 + row["number"] % 3)}, remove_columns=["number", "level"])
    finals = []
    for objective in (None, TokenAverage(key="logp_BT", scale=-1.0)):
        made = with_curriculum(trl.SFTTrainer)(
            tiny.model(), args=tiny.sft_config(tmp_path, gradient_accumulation_steps=2), train_dataset=data, objective=objective,
            processing_class=tiny.tokenizer(), curriculum=curriculum and tt.curriculum(curriculum, pool),
        )  # fmt: skip
        made.train()
        finals.append(tiny.weights(made.model).view(np.float32))
    np.testing.assert_allclose(*finals, atol=2e-4)
