"""What a checkpoint carries for the adapter, and how a run takes it up again.

Beside TRL's own files: `lessons.npz` (the states of the curriculum and of the objective's sources and controller, the ledger, counters),
`engine_rank<r>.pt` (each process's share of what TRL keeps in memory) and, where the reference model moves, `reference.pt`. Random states
are in TRL's `rng_state*.pth`, one per process.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from tutelage.errors import TutelageError
from tutelage.state import load_state, save_state
from tutelage.trainers import _checkpoint
from tutelage.trainers._sync import decide

if TYPE_CHECKING:
    from tutelage.trainers.trl import Lessons

logger = logging.getLogger(__name__)
WORDS = {"curriculum": "a curriculum", "mix": "demonstrations or a controller in its objective"}
LESSONS, ENGINE, REFERENCE = "lessons.npz", "engine_rank{}.pt", "reference.pt"


def write(trainer: Lessons, folder: Path) -> None:
    """Add the adapter's files to a staged checkpoint; every process writes its own."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.engine_state(), folder / ENGINE.format(trainer.accelerator.process_index))
    if not trainer.args.should_save:
        return
    state: dict[str, Any] = {"ledger": trainer.ledger.state_dict(), "barren": trainer.barren}
    state |= {name: part.state_dict() for name, part in _parts(trainer).items()}
    save_state(folder / LESSONS, state)
    if _moving_reference(trainer):
        torch.save(trainer.accelerator.unwrap_model(trainer.ref_model).state_dict(), folder / REFERENCE)


def take_up(trainer: Lessons, given: bool | str) -> str:
    """Restore the adapter's state from the checkpoint asked for (True: the newest whole one) and return its path.

    Names every newer checkpoint it passes over, in the log and in `trainer.skipped_checkpoints`.
    """
    run = Path(trainer.args.output_dir)
    path, trainer.skipped_checkpoints = decide(lambda: _find(run, given))
    for name, reason in trainer.skipped_checkpoints.items():
        logger.warning("Passing over %s: %s.", run / name, reason)
    saved = load_state(path / LESSONS)
    for name, part in _parts(trainer).items():
        if name not in saved:
            raise TutelageError(f"The checkpoint {path} was made without {WORDS[name]}; go on without, or start anew.")
        part.load_state_dict(saved[name])
    for name in WORDS.keys() & saved.keys() - _parts(trainer).keys():
        raise TutelageError(
            f"The checkpoint {path} was made with {WORDS[name]}, and this trainer has none. Give it the same, or start anew."
        )
    trainer.ledger.load_state_dict(saved["ledger"])
    trainer.barren = int(saved["barren"])
    _load_engine(trainer, path)
    if _moving_reference(trainer):
        weights = torch.load(path / REFERENCE, map_location="cpu", weights_only=True)
        trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(weights)
    return str(path)


def _parts(trainer: Lessons) -> dict[str, Any]:
    """What has a state, by its name in `lessons.npz`."""
    return {name: part for name in WORDS if (part := getattr(trainer, name)) is not None}


def _find(run: Path, given: bool | str) -> tuple[Path, dict[str, str]]:
    if not isinstance(given, bool):
        reason = _checkpoint.flaw(Path(given)) if Path(given).is_dir() else "there is no such folder"
        if reason is not None:
            raise TutelageError(
                f"Cannot resume from {given}: {reason}. resume_from_checkpoint=True takes the newest whole checkpoint of {run}."
            )
        return Path(given), {}
    path, skipped = _checkpoint.newest(run)
    if path is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise TutelageError(
            f"There is no whole checkpoint in {run}{f' ({reasons})' if skipped else ''}. Start anew without resume_from_checkpoint, or set "
            "output_dir to the folder of the run to go on with."
        )
    return path, skipped


def _load_engine(trainer: Lessons, path: Path) -> None:
    """Restore what TRL keeps in memory; batches of another shape are dropped, and the next one is generated at once."""
    then, now = _checkpoint.read_manifest(path)["shape"], trainer.shape()
    name = ENGINE.format(trainer.accelerator.process_index if then["processes"] == now["processes"] else 0)
    state: dict[str, Any] = send_to_device(torch.load(path / name, map_location="cpu", weights_only=True), trainer.accelerator.device)
    if then != now:
        changed = ", ".join(f"{key} was {then.get(key)} and is {now[key]}" for key in now if then.get(key) != now[key])
        logger.warning("%s goes on with other settings (%s): decisions continue, but not number for number.", path, changed)
        state = {"metrics": {}, **({"_total_train_tokens": state["_total_train_tokens"]} if "_total_train_tokens" in state else {})}
    trainer.load_engine_state(state)


def _moving_reference(trainer: Lessons) -> bool:
    """Whether TRL moves the reference model during training; it keeps no copy of its own."""
    return bool(getattr(trainer.args, "sync_ref_model", False)) and getattr(trainer, "ref_model", None) is not None
