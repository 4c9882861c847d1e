"""The private names of TRL and transformers that the adapter uses exist in the installed versions, and are used in these files alone."""
# ruff: noqa: E402

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import tutelage as tt

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import tiny
from tutelage.errors import TutelageError
from tutelage.trainers import _trl_private
from tutelage.trainers.trl import with_curriculum

FOLDER = Path(_trl_private.__file__).parent
ADAPTER = ["trl.py", "_refill.py", "_lesson.py", "_resume.py", "_objective.py", "_supervised.py", "_batches.py", "_judgement.py"]
ADAPTER += ["_signals.py", "_intervention.py", "_rollouts.py", "_distillation.py", "_mix.py", "_sources.py", "_gkd.py"]


def private_names(path: Path) -> set[str]:
    """Private attributes that a file reads or calls on anything but a module of this package."""
    tree = ast.parse(path.read_text())
    modules = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found = {node.attr for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id in modules)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


PRIVATE = [FOLDER / "_trl_private.py", FOLDER / "_grpo_private.py"]


def own_names() -> set[str]:
    classes = [node for path in PRIVATE for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    own = {item.name for c in classes for item in c.body if isinstance(item, ast.FunctionDef)}
    own |= {item.target.id for c in classes for item in c.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    return own | {"_row_source"}


def test_one_file_knows_the_insides() -> None:
    for name in ADAPTER:
        assert private_names(FOLDER / name) == set(), name


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("run")
    data, _ = tiny.tasks()
    grpo = trl.GRPOTrainer(tiny.model(), tiny.digits, args=tiny.grpo_config(path), train_dataset=data, processing_class=tiny.tokenizer())
    text = data.rename_column("prompt", "text")
    return [grpo, trl.SFTTrainer(tiny.model(), args=tiny.sft_config(path), train_dataset=text, processing_class=tiny.tokenizer())]


def test_every_private_name_is_there(trainers: list[Any]) -> None:
    names = set().union(*map(private_names, PRIVATE), _trl_private.IN_MEMORY)
    foreign = {name for name in names if name not in own_names() or hasattr(trl.GRPOTrainer, name)}
    assert {"_generate_and_score_completions", "_calculate_rewards", "_buffered_inputs", "_step", "_metrics"} <= foreign
    for name in foreign:
        assert any(hasattr(trainer, name) for trainer in trainers), name


@pytest.mark.parametrize(
    ("base", "name", "parameters"),
    [
        (trl.GRPOTrainer, "_generate_and_score_completions", ["inputs"]),
        (trl.GRPOTrainer, "_calculate_rewards", ["inputs", "prompts", "completions", "completion_ids_list"]),
        (trl.GRPOTrainer, "_compute_loss", ["model", "inputs"]),
        (trl.GRPOTrainer, "_save_checkpoint", ["model", "trial"]),
        (trl.GRPOTrainer, "_get_output_dir", ["trial"]),
        (trl.GRPOTrainer, "_push_from_checkpoint", ["checkpoint_folder"]),
        (trl.GRPOTrainer, "get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        (trl.GRPOTrainer, "_prepare_inputs", ["generation_batch"]),
        (trl.GRPOTrainer, "_get_grad_norm", ["model", "grad_norm"]),
        (trl.SFTTrainer, "get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        (trl.SFTTrainer, "compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
    ],
)
def test_signatures_are_as_overridden(base: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(base, name)).parameters)[1:] == parameters


def test_the_batch_has_the_keys_that_are_regrouped(trainers: list[Any]) -> None:
    trainers[0].model.train()
    batch = trainers[0]._generate_and_score_completions([{"prompt": "01="}] * 4)
    assert set(batch) == {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"}


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ("1.99.0", "0.9.2"):
        monkeypatch.setattr(_trl_private, "version", lambda package, found=found: found if package == "trl" else "5.23.0")
        with pytest.raises(TutelageError, match=rf"found trl {found}.*pip install 'trl>="):
            with_curriculum(type("Fresh", (trl.GRPOTrainer,), {}))


def test_two_changed_lines(tmp_path: Path) -> None:
    """A plain TRL script; what a curriculum adds is one import-and-wrap and one argument."""
    data, pool = tiny.tasks()
    trainer = with_curriculum(trl.GRPOTrainer)(
        model=tiny.model(), reward_funcs=tiny.digits, args=tiny.grpo_config(tmp_path), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=tt.curriculum("sec", pool),
    )  # fmt: skip
    assert trainer.train().global_step == 4
