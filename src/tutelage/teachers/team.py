"""A team of past checkpoints: the student's own past as its teachers, as SPIN and TPAW have it.

    team = CheckpointTeam("out/team", size=3)
    team.save(0, model, tokenizer)                                            # the start; later 1, 2, ... after each round
    sampled = team.demonstrate(model, 3, prompts, tokenizer, seed=0)          # what the student answers when round 4 begins
    logp_NJ = team.score(model, team.players(4), "targets", replies, tokenizer)   # under that round's players

Players are frozen, so each reply is scored once under each player, and the numbers stay on disk: training needs the columns, not the
players. One model is in memory at any time; it takes on the weights of the player that is asked. What is stored of a player is what
`save_pretrained` writes: a whole model, or its adapter alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.files import atomic_dir
from tutelage.registry import teachers
from tutelage.state import load_state, save_state
from tutelage.teachers.replies import Ids, Replies, bare, end_ids, format_digest, pad_id, sample_replies, score_replies

CARD = "player.json"


def lineup(round: int, size: int) -> list[int]:
    """Who takes part in a round (from 1), of what was numbered from 0: the last `size` that exist, oldest first.

    Of checkpoints (0 is the start, t what round t made) these are the players; of rounds' data, numbered from 0, the rounds trained on.
    """
    return list(range(max(0, round - size), round))


@teachers.register("checkpoint_team")
class CheckpointTeam:
    """The student's own last checkpoints: the newest demonstrates, each of them scores (SPIN, TPAW).

    Args:
        folder: where players and their scores are kept.
        size: how many of the last checkpoints play (TPAW's N_max, 3); SPIN is a team of 1. Round t has the players
            max(0, t - size) ... t - 1, so the first rounds run with fewer.
    """

    def __init__(self, folder: str | os.PathLike[str], *, size: int = 3) -> None:
        if size < 1:
            raise TutelageError(f"A team has at least one player; got size={size}.")
        self.folder, self.size = Path(folder), size

    def path(self, number: int) -> Path:
        """The folder of player `number`."""
        return self.folder / f"player-{number}"

    def has(self, number: int) -> bool:
        """Whether player `number` is there, whole."""
        return (self.path(number) / CARD).is_file()

    def players(self, round: int) -> list[int]:
        """The players of a round (from 1), oldest first.

        Raises `TutelageError` if one of them is missing: a smaller team would be another method.
        """
        numbers = lineup(round, self.size)
        missing = [str(self.path(number)) for number in numbers if not self.has(number)]
        if missing:
            raise TutelageError(
                f"Round {round} plays against a team of {len(numbers)} checkpoints, and {', '.join(missing)} is not there. It was deleted, "
                "or the rounds before were run elsewhere. Bring it back, start anew in an empty folder, or ask for a smaller team."
            )
        return numbers

    def save(self, number: int, model: Any, tokenizer: Any, **facts: Any) -> None:
        """Keep the model as player `number`, whole or not at all. facts: what its card is to say beside its fingerprint; JSON values."""
        with atomic_dir(self.path(number)) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / CARD).write_text(json.dumps({"number": number, "fingerprint": _fingerprint(folder), **facts}))

    def card(self, number: int) -> dict[str, Any]:
        """A player's number, its `fingerprint` (128 bits of its weights as they were saved), and the facts it was saved with."""
        if not self.has(number):
            raise TutelageError(f"There is no whole checkpoint {self.path(number)}. Bring it back, or start anew in an empty folder.")
        return json.loads((self.path(number) / CARD).read_text())

    def load(self, number: int, model: Any) -> None:
        """Give `model` the weights of a player. Raises `TutelageError` if its files are not those that were saved."""
        folder, expected = self.path(number), self.card(number)["fingerprint"]
        if _fingerprint(folder) != expected:
            raise TutelageError(
                f"The weights in {folder} were changed after they were saved, or cut short; the round cannot go on from them."
            )
        if bare(model) is not model:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        else:
            model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())

    def demonstrate(self, model: Any, number: int, prompt_N: list[Ids], tokenizer: Any, *, seed: int, **sampling: Any) -> list[Ids]:
        """One reply of player `number` to each prompt; `sampling` as in `sample_replies`."""
        self.load(number, model)
        return sample_replies(model, prompt_N, seed=seed, ends=end_ids(model, tokenizer), pad=pad_id(tokenizer), **sampling)

    def score(self, model: Any, players: list[int], name: str, replies: Replies, tokenizer: Any, **scoring: Any) -> NDArray[np.float64]:
        """log π_j of N replies under J players, in nats (N, J); each number is computed once and kept under `name`.

        Raises:
            TutelageError: scores of that name are there, and are of other replies, another player, tokenizer or template.
        """
        return np.stack([self._column(model, j, name, replies, tokenizer, scoring) for j in players], axis=1)

    def _column(self, model: Any, number: int, name: str, replies: Replies, tokenizer: Any, scoring: dict[str, Any]) -> NDArray[np.float64]:
        path = self.folder / "scores" / f"player-{number}.{name}.npz"
        manifest = {"player": self.card(number)["fingerprint"], "replies": replies.digest, "format": format_digest(tokenizer)}
        if path.is_file():
            found = load_state(path)
            differ = [key for key, value in manifest.items() if found["manifest"].get(key) != value]
            if differ:
                words = {"player": "another player", "replies": "other replies", "format": "another tokenizer or chat template"}
                raise TutelageError(
                    f"The scores in {path} are of {' and '.join(words[key] for key in differ)}, so they would be wrong references. "
                    "Delete the file to score anew, or go on with the data and tokenizer that it was made with."
                )
            return found["logp_N"]
        self.load(number, model)
        logp_N = score_replies(model, replies, pad=pad_id(tokenizer), **scoring)
        save_state(path, {"manifest": manifest, "logp_N": logp_N})
        return logp_N


def _fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TutelageError(f"There are no weights (*.safetensors) in {folder}.")
    for file in files:
        with file.open("rb") as opened:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()
