"""`with_objective(trl.DPOTrainer)`: TRL's own loss where both define one, whatever the cut; players as columns; checkpoints that hold."""
# ruff: noqa: E402

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tiny
from test_trl_contract import private_names
from test_trl_ranks import raised, two_ranks
from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.objectives.pairwise import Pairwise
from tutelage.teachers.replies import Replies, encode_reply, score_replies
from tutelage.trainers import _dpo_private
from tutelage.trainers.dpo import complete_checkpoints, with_objective

Trainer = with_objective(trl.DPOTrainer)
ROWS = [{"prompt": f"0{i}=", "chosen": "ab" * (1 + i % 3), "rejected": "c" + "9" * (i % 4) + "d"} for i in range(8)]
CHAT = [
    {key: [{"role": "user" if key == "prompt" else "assistant", "content": text}] for key, text in row.items()} for row in ROWS
]  # fmt: skip
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
PLAIN = objective("tpaw", target_multiplier=1.0)
FULL = Pairwise(target_multiplier=6.0, player_gamma=0.5, supervised_weight=0.5, supervised_aggregation="token_mean")


def config(path: Path | str, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(path), "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip
    return trl.DPOConfig(**defaults | options)


def columns(rows: list[dict[str, Any]], seeds: tuple[int, ...] = (1,)) -> list[dict[str, Any]]:
    """The rows with the scores of players drawn under these seeds."""
    token = tiny.tokenizer()
    found = [dict(row) for row in rows]
    for side in ("chosen", "rejected"):
        ids = [encode_reply(token, row["prompt"], row[side]) for row in rows]
        replies = Replies([p for p, _ in ids], [r for _, r in ids])
        score_NJ = np.stack([score_replies(tiny.model(seed), replies, pad=0, batch_size=3) for seed in seeds], axis=1)
        for row, score_J in zip(found, score_NJ.tolist(), strict=True):
            row[f"ref_{side}_logp"] = score_J
    return found


def make(path: Path, rows: list[dict[str, Any]], part: Any = PLAIN, *, model: Any = None, **options: Any) -> Any:
    return Trainer(
        model=model or tiny.model(), args=config(path, **options), train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer(),
        objective=part,
    )  # fmt: skip


def floats(net: torch.nn.Module) -> np.ndarray:
    return tiny.weights(net).view(np.float32)


# --- TRL's own loss


@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("options", [{}, ACCUMULATED], ids=["whole", "accumulated"])
def test_one_player_trains_as_trl(tmp_path: Path, rows: Any, options: dict[str, Any]) -> None:
    """Precomputed references on both sides; TRL computes its own from a reference model of other weights."""
    theirs = trl.DPOTrainer(
        model=tiny.model(), ref_model=tiny.model(1), args=config(tmp_path, precompute_ref_log_probs=True, **options),
        train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer(),
    )  # fmt: skip
    ours = make(tmp_path, columns(rows), **options)
    assert ours.ref_model is None
    for trainer in (theirs, ours):
        trainer.train()
    logged = [[h[key] for h in t.state.log_history if key in h] for t in (theirs, ours) for key in ("loss", "grad_norm")]
    np.testing.assert_allclose(logged[2], logged[0], atol=1e-6)
    np.testing.assert_allclose(logged[3], logged[1], rtol=1e-5)
    np.testing.assert_allclose(floats(ours.model), floats(theirs.model), atol=2e-6)
    assert np.abs(floats(ours.model) - floats(tiny.model())).max() > 1e-2


def test_without_an_objective_it_is_trl(tmp_path: Path) -> None:
    options = {"precompute_ref_log_probs": True, "save_strategy": "steps", "save_steps": 2}
    found = []
    for kind in (trl.DPOTrainer, Trainer):
        trainer = kind(
            model=tiny.model(), args=config(tmp_path / kind.__name__, **options), train_dataset=Dataset.from_list(ROWS),
            processing_class=tiny.tokenizer(),
        )  # fmt: skip
        trainer.train()
        found.append(tiny.weights(trainer.model))
        assert (tmp_path / kind.__name__ / "checkpoint-4").is_dir()
    np.testing.assert_array_equal(*found)


def test_the_first_step_of_tpaw(tmp_path: Path) -> None:
    """θ = θ_0: P = 0, α = η, loss ln 2 exactly, gradient −λ/2 (6 ∇log π(y) − ∇log π(y')), a mean over pairs."""
    trainer = make(tmp_path, columns(ROWS), objective("tpaw"), per_device_train_batch_size=8)
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    batch = trainer.pair_columns(trainer.model, inputs)
    sums = {side: (batch[f"{side}_logp_BT"] * batch[f"{side}_mask_BT"]).sum(1) for side in ("chosen", "rejected")}
    weights = list(trainer.model.parameters())
    expected = torch.autograd.grad(-0.1 / 2 * (6 * sums["chosen"] - sums["rejected"]).mean(), weights, retain_graph=True)
    for side in ("chosen", "rejected"):
        batch[f"ref_{side}_logp_BJ"] = sums[side].detach().unsqueeze(1)
    trainer.model.train()
    trainer.window_counts = trainer.objective.denominators_of(batch)
    loss = trainer.objective_loss(batch, training=True)
    assert loss.item() == np.float32(math.log(2))
    for ours, theirs in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


# --- however the step is cut


@pytest.mark.parametrize(("share", "parts"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_changes_nothing(tmp_path: Path, share: int, parts: int) -> None:
    rows = columns(ROWS, (1, 2, 3))
    whole, cut = (
        make(tmp_path, rows, FULL, per_device_train_batch_size=b, gradient_accumulation_steps=a) for b, a in ((8, 1), (share, parts))
    )
    for trainer in (whole, cut):
        trainer.train()
    np.testing.assert_allclose(floats(cut.model), floats(whole.model), atol=5e-6)
    keys = ("loss", "objective/target_drift", "objective/supervised_loss", "objective/player_entropy", "num_tokens")
    for key in keys:
        values = [[h[key] for h in t.state.log_history if key in h] for t in (whole, cut)]
        assert len(values[0]) == 4
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, err_msg=key)
    assert cut.ledger == whole.ledger
    assert cut.ledger.updates == 4


def _two(path: Path, share: int) -> dict[str, Any]:
    trainer = make(path, columns(ROWS, (1, 2)), FULL, per_device_train_batch_size=share, gradient_accumulation_steps=2)
    trainer.train()
    drift = [h["objective/target_drift"] for h in trainer.state.log_history if "objective/target_drift" in h]
    return {"weights": tiny.weights(trainer.model), "drift": drift, "ledger": trainer.ledger.state_dict()}


def test_two_processes_are_one(tmp_path: Path) -> None:
    alone = _two(tmp_path / "one", 4)
    first, second = raised(two_ranks(_two, tmp_path / "two", 2))
    np.testing.assert_array_equal(first["weights"], second["weights"])
    np.testing.assert_allclose(first["weights"].view(np.float32), alone["weights"].view(np.float32), atol=5e-5)
    np.testing.assert_allclose(first["drift"], alone["drift"], rtol=1e-3, atol=1e-4)
    assert first["ledger"] == second["ledger"] == alone["ledger"]


def test_evaluation_is_the_objective(tmp_path: Path) -> None:
    rows = columns(ROWS, (1, 2))
    seen: list[Any] = []
    trainer = Trainer(
        model=tiny.model(), args=config(tmp_path, per_device_eval_batch_size=8), train_dataset=Dataset.from_list(rows[:4]),
        eval_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer(), objective=FULL,
        compute_metrics=lambda prediction: seen.append(prediction.predictions.shape) or {},
    )  # fmt: skip
    batch = trainer.pair_columns(trainer.model, trainer.data_collator([trainer.eval_dataset[i] for i in range(8)]))
    expected, _ = FULL(batch, denominators=FULL.denominators_of(batch))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert seen == [(16, batch["chosen_mask_BT"].shape[1] + 1, 43)]
    trainer.train()
    held_out = Dataset.from_list(columns(ROWS, (1, 2))[2:])  # given after training, when TRL itself could not score it any more
    batch = trainer.pair_columns(trainer.model, trainer.data_collator([trainer.eval_dataset[i] for i in range(2, 8)]))
    expected, _ = FULL(batch, denominators=FULL.denominators_of(batch))
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(TutelageError, match="no column ref_chosen_logp and no column ref_rejected_logp"):
        trainer.evaluate(Dataset.from_list(ROWS))


# --- rows, adapters


def test_token_ids_stay_as_they_are(tmp_path: Path) -> None:
    """The reply `c` without an end token was cut off; TRL would add one to a text, and another score would belong to it."""
    rows = columns(ROWS)
    for row in rows:
        row["prompt_ids"], row["chosen_ids"] = encode_reply(tiny.tokenizer(), row.pop("prompt"), row.pop("chosen"))
        row["rejected_ids"] = [5, 6, 7]
        row.pop("rejected")
    trainer = make(tmp_path, rows)
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    assert inputs["completion_mask"][8:].sum(1).tolist() == [3] * 8
    assert inputs["input_ids"][8].tolist()[:6] == [*rows[0]["prompt_ids"], 5, 6, 7][:6]
    assert inputs["ref_chosen_logp_BJ"].shape == (8, 1)
    trainer.train()


def test_an_adapter_without_a_copy(tmp_path: Path) -> None:
    adapted = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=True))
    trainer = make(tmp_path, columns(ROWS, (1, 2)), FULL, model=adapted, save_strategy="steps", save_steps=4)
    assert set(trainer.model.peft_config) == {"default"}
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    trainer.train()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert not (complete_checkpoints(tmp_path)[-1] / "ref").exists()


# --- checkpoints


def test_resumed_equals_unbroken(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **ACCUMULATED}
    rows = columns(ROWS, (1, 2))
    unbroken = make(tmp_path, rows, FULL, model=tiny.model(dropout=0.1), **options)
    unbroken.train()
    first, second, last = complete_checkpoints(tmp_path)
    for checkpoint in (first, second):
        resumed = make(tmp_path / "again", rows, FULL, model=tiny.model(7, dropout=0.1), **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        np.testing.assert_array_equal(tiny.weights(resumed.model), tiny.weights(unbroken.model))
        assert resumed.ledger == unbroken.ledger
    next(last.glob("*.safetensors")).write_bytes(b"cut short")
    newest = make(tmp_path, rows, FULL, **options)
    newest.train(resume_from_checkpoint=True)
    assert list(newest.skipped_checkpoints) == ["checkpoint-6"]


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_chosen_logp": None}, "no column ref_chosen_logp;.*score_replies"),
        ({"ref_chosen_logp": [-1.0]}, "ref_chosen_logp has 1 players and ref_rejected_logp 2"),
        ({"ref_chosen_logp": [-1.0, math.nan]}, r"Row 0 has ref_chosen_logp=\[-1.0, nan\]; expected a list of 2 finite"),
        ({"ref_chosen_logp": -1.0, "ref_rejected_logp": -1.0}, "With one player it is a list of one"),
    ],
)
def test_reference_columns_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [{key: value for key, value in (row | change).items() if value is not None} for row in columns(ROWS, (1, 2))]
    with pytest.raises(TutelageError, match=message):
        make(tmp_path, rows)


def test_what_would_have_no_say_is_refused(tmp_path: Path) -> None:
    rows = columns(ROWS)
    with pytest.raises(TutelageError, match="beta of DPOConfig shape"):
        make(tmp_path, rows, beta=0.3)
    with pytest.raises(TutelageError, match="loss_type, label_smoothing of DPOConfig shape"):
        make(tmp_path, rows, loss_type="robust", label_smoothing=0.1)
    with pytest.raises(TutelageError, match="ref_model would have no say"):
        Trainer(model=tiny.model(), ref_model=tiny.model(1), args=config(tmp_path), train_dataset=Dataset.from_list(rows), objective=PLAIN)
    with pytest.raises(TutelageError, match=r"advantage_B, .*which a DPO trainer does not have"):
        make(tmp_path, rows, objective("grpo"))
    with pytest.raises(TutelageError, match=r"takes trl.DPOTrainer or a subclass"):
        with_objective(trl.SFTTrainer)
    with pytest.raises(TutelageError, match="without streaming"):
        Trainer(
            model=tiny.model(), args=config(tmp_path), train_dataset=Dataset.from_list(rows).to_iterable_dataset(), objective=PLAIN,
            processing_class=tiny.tokenizer(),
        )  # fmt: skip


# --- the contract with TRL


def test_one_file_knows_the_insides(tmp_path: Path) -> None:
    folder = Path(_dpo_private.__file__).parent
    for name in ("dpo.py", "_rounds.py", "self_play.py"):
        own = {n.name for n in ast.walk(ast.parse((folder / name).read_text())) if isinstance(n, ast.FunctionDef)}
        assert private_names(folder / name) <= own, name
    trainer = make(tmp_path, columns(ROWS))
    foreign = private_names(folder / "_dpo_private.py")
    assert {"_prepare_dataset", "_precompute_ref_logps", "_signature_columns", "_total_train_tokens", "_metrics"} <= foreign
    for name in foreign | {"aux_loss_enabled"}:
        assert hasattr(trainer, name), name
    assert trainer.data_collator.collate.__class__.__name__ == "DataCollatorForPreference"
    assert set(_dpo_private.LOSS_SETTINGS) <= set(vars(trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", ["model", "ref_model", "args", "data_collator", "train_dataset", "eval_dataset"]),
        ("_prepare_dataset", ["dataset"]),
        ("_precompute_ref_logps", ["dataset", "name", "batch_size"]),
        ("_set_signature_columns_if_needed", []),
        ("_compute_loss", ["model", "inputs", "return_outputs"]),
        ("get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
    ],
)
def test_signatures_are_as_overridden(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(trl.DPOTrainer, name)).parameters)[1 : len(parameters) + 1] == parameters
