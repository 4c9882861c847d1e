"""Self-play in rounds: a language model learns from demonstrations against its own samples. SPIN, TPAW and their ablations are settings.

    record = self_play(model, tokenizer, demonstrations, "tpaw", out="runs/tpaw", rounds=3, steps=150, settings={"learning_rate": 5e-7})

Round t, from the checkpoint θ_(t−1):

1. *Sample* one reply per prompt at temperature 1.
2. *Pair* each demonstration with the sample; equal sides are dropped and counted.
3. *Score* both under each player, the last `team` checkpoints: two floats per pair and player, computed once and kept on disk.
4. *Train* on the pairs of the last `opponents` rounds, through `with_objective(trl.DPOTrainer)`; no player is in memory.
5. *Report* the drift of the demonstrations' log-probability against θ_0, which the loss itself does not show.

Beside it runs the control: as many optimiser steps of plain supervised training on the same demonstrations, from the same start.

Everything is under `out`. A run that was killed, called again with the same arguments, goes on after its last finished stage, or from its
last whole checkpoint within one, and ends with the same weights; with other arguments it is refused. `model` is trained in place: stages
load the weights they start from into it.

Departures from the papers: optimiser and schedule start anew in every round, which takes `steps` steps however many pairs there are;
dropout is off throughout, as in TRL's `DPOTrainer`; SPIN's larger β in its third round is left to the caller.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import TutelageError, missing_extra
from tutelage.files import atomic_write
from tutelage.objectives import objective as objective_of
from tutelage.state import load_state, save_state
from tutelage.tasks.pairs import build_pairs
from tutelage.teachers.replies import Replies, encode_reply, end_ids, format_digest
from tutelage.teachers.team import CheckpointTeam, lineup
from tutelage.trainers.ledger import Ledger

try:
    import datasets
    import torch
    from accelerate import PartialState
except ImportError as error:
    raise missing_extra(error.name or "trl", "lm") from error

from tutelage.trainers import _rounds

__all__ = ["Moment", "SelfPlay", "self_play"]
logger = logging.getLogger(__name__)
TEAMS = {"dpo": (1, 1), "spin": (1, 2), "tpaw": (3, 3)}
"""Preset -> players and rounds of pairs, as released or published."""


@dataclass(frozen=True)
class Moment:
    """What `after_round` callbacks get: the model as it stands after a round (0: the start) of an arm, "self_play" or "control"."""

    round: int
    arm: str
    model: Any
    tokenizer: Any


@dataclass
class SelfPlay:
    """A finished run.

    folder: of its files; `team/player-<t>` is the checkpoint after round t, `control/player-<t>` the control's. rounds: one report per
    round, the start first. ledger: what self-play has spent; the control's stands in its reports. warnings: what should worry.

    A report holds, for `self_play` and `control`: `target_drift`, the mean of log π_t − log π_0 over the demonstrations in nats,
    `held_out_drift`, the same of held-out ones where given, `metrics`, what the callbacks returned, and `ledger`, the sums up to here.
    Of self-play also: `players`, `pairs` trained on, `equal`, samples dropped because they equal their demonstration, `cut`, the share of
    samples without an end, and `sample_drift`, of the replies sampled in this round.
    """

    folder: Path
    rounds: list[dict[str, Any]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    warnings: list[str] = field(default_factory=list)


def self_play(
    model: Any,
    tokenizer: Any,
    demonstrations: Iterable[Mapping[str, Any]],
    objective: Any = "tpaw",
    *,
    out: str | Path,
    rounds: int = 3,
    steps: int,
    team: int | None = None,
    opponents: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    generation_batch: int = 64,
    scoring_batch: int = 16,
    settings: Mapping[str, Any] | None = None,
    control_settings: Mapping[str, Any] | None = None,
    reuse_control: str | Path | None = None,
    held_out: Iterable[Mapping[str, Any]] | None = None,
    after_round: Sequence[Callable[[Moment], Mapping[str, float]]] = (),
) -> SelfPlay:
    """Train `model` by self-play, and a longer supervised control beside it.

    Args:
        model: a causal language model of transformers, whole or with an adapter of peft (then players are adapters); θ_0, best after
            supervised training on the same demonstrations.
        demonstrations: rows with `prompt` and `completion`, texts or lists of messages (a `datasets.Dataset` will do).
        objective: "tpaw", "spin", "dpo", or an objective of pairs, such as `objective("tpaw", player_gamma=0.0)`; then `team` is needed.
        out: folder of the run.
        rounds, steps: rounds, and optimiser steps in each; a finished run can be called again with more rounds.
        team: how many of the last checkpoints are players (TPAW 3, SPIN 1). Round 1 has one, round 2 at most two.
        opponents: of how many of the last rounds the pairs are trained on (TPAW 3; SPIN's release 2). Default: the preset's, or `team`.
        max_new_tokens, temperature, generation_batch: of sampling. scoring_batch: replies scored at once.
        settings: options of `trl.DPOConfig`. control_settings: of `trl.SFTConfig`, for the control, which else takes those of `settings`.
        reuse_control: folder of a run whose control, on the same start, data, seed and settings, serves this run too.
        held_out: further rows, to measure the drift on; never trained on.
        after_round: functions of a `Moment` that return numbers for the report, such as held-out accuracy; they must leave the model as
            it is.

    Raises:
        TutelageError: settings that do not exist or are not the caller's, a folder of another run, scores of other data, a missing
            checkpoint, samples that all equal their demonstrations, several processes.
    """
    preset = objective if isinstance(objective, str) else None
    if team is None and preset not in TEAMS:
        raise TutelageError(f"How many checkpoints play? Give team= (TPAW 3, SPIN 1); only {', '.join(TEAMS)} by name bring their own.")
    players = team if team is not None else TEAMS[str(preset)][0]
    plan: dict[str, Any] = {
        "objective": repr(objective_of(objective) if preset else objective), "steps": steps, "team": players,
        "opponents": opponents or (TEAMS[preset][1] if preset in TEAMS and team is None else players), "seed": seed,
        "sampling": {"max_new_tokens": max_new_tokens, "temperature": temperature, "batch_size": generation_batch},
        "scoring_batch": scoring_batch, "settings": dict(settings or {}), "control_settings": dict(control_settings or {}),
    }  # fmt: skip
    if min(rounds, steps, players, plan["opponents"]) < 1:
        raise TutelageError(f"rounds, steps, team and opponents are at least 1; got {rounds}, {steps}, {players}, {plan['opponents']}.")
    if PartialState().num_processes > 1:
        raise TutelageError(
            "self_play samples and scores in one process. Across processes, train each round's pairs with "
            "tutelage.trainers.dpo.with_objective, which accelerate launches as it does any trainer."
        )
    ends = end_ids(model, tokenizer)
    targets, measured = (_encoded(tokenizer, rows, ends) for rows in (demonstrations, held_out or ()))
    run = _Run(model, tokenizer, objective_of(objective) if preset else objective, Path(out), plan, targets, measured, tuple(after_round))
    return run.go(rounds, None if reuse_control is None else Path(reuse_control))


def _encoded(tokenizer: Any, rows: Iterable[Mapping[str, Any]], ends: list[int]) -> Replies:
    pairs = []
    for number, row in enumerate(rows):
        if "prompt" not in row or "completion" not in row:
            raise TutelageError(f"Demonstration {number} has the columns {', '.join(row)}; expected `prompt` and `completion`.")
        pairs.append(encode_reply(tokenizer, row["prompt"], row["completion"], ends=ends))
    return Replies([p for p, _ in pairs], [r for _, r in pairs])


class _Run:
    """The stages of one run. Every stage writes its result whole, and is passed over where the result is there."""

    def __init__(
        self, model: Any, tokenizer: Any, objective: Any, out: Path, plan: dict[str, Any], targets: Replies, held_out: Replies, after: Any
    ) -> None:
        if not len(targets):
            raise TutelageError("There are no demonstrations: self-play needs rows with `prompt` and `completion`.")
        self.model, self.tokenizer, self.objective, self.out, self.after = model, tokenizer, objective, out, after
        self.targets, self.held_out = targets, held_out
        facts = {"demonstrations": targets.digest, "held_out": held_out.digest, "format": format_digest(tokenizer)}
        self.plan = {**plan, **facts, "frozen": _frozen_digest(model)}
        self.steps, self.opponents, self.settings = plan["steps"], plan["opponents"], plan["settings"]
        self.team, self.control = CheckpointTeam(out / "team", size=plan["team"]), CheckpointTeam(out / "control", size=1)
        config = _rounds.pair_config(self.settings, out, self.steps, 0)
        _rounds.supervised_config(self.settings, plan["control_settings"], out, self.steps, 0)
        self.scoring = {"batch_size": plan["scoring_batch"], "autocast": _rounds.precision(config)}

    def go(self, rounds: int, reused: Path | None) -> SelfPlay:
        self._take_up()
        for part in self.model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        if not self.team.has(0):
            self.team.save(0, self.model, self.tokenizer)
        theirs = None if reused is None else self._reusable(reused, rounds)
        record = SelfPlay(self.out)
        for t in range(rounds + 1):
            path = self.out / f"round-{t}.json"
            if not path.is_file():
                before = record.rounds[-1] if t else None
                report = {"round": t, "self_play": self._self_play(t, before), "control": theirs[t] if theirs else self._control(t, before)}
                atomic_write(path, json.dumps(report, indent=1) + "\n")
            record.rounds.append(json.loads(path.read_text()))
            record.warnings += _warnings(record.rounds[-1])
        record.ledger = Ledger(**record.rounds[-1]["self_play"]["ledger"])
        for warning in record.warnings:
            logger.warning(warning)
        self.team.load(rounds, self.model)
        return record

    def _take_up(self) -> None:
        """Write the plan, or make sure that the folder's run is this one."""
        path = self.out / "self_play.json"
        plan = json.loads(json.dumps(self.plan))
        if path.is_file():
            _compare(json.loads(path.read_text()), plan, list(plan), f"{self.out} holds another run")
        else:
            atomic_write(path, json.dumps(plan, indent=1) + "\n")

    def _reusable(self, folder: Path, rounds: int) -> list[dict[str, Any]]:
        """The control's reports of another run, which must be the very ones this run would make."""
        paths = [folder / f"round-{t}.json" for t in range(rounds + 1)]
        missing = [str(path) for path in (folder / "self_play.json", *paths) if not path.is_file()]
        if missing:
            raise TutelageError(f"The control of {folder} cannot be reused: {missing[0]} is missing. It needs {rounds} finished rounds.")
        keys = ["steps", "seed", "settings", "control_settings", "demonstrations", "held_out", "format", "frozen"]
        _compare(json.loads((folder / "self_play.json").read_text()), self.plan, keys, f"The control of {folder} is of another run")
        if CheckpointTeam(folder / "team").card(0)["fingerprint"] != self.team.card(0)["fingerprint"]:
            raise TutelageError(f"The control of {folder} began from another start. Run the control anew: leave reuse_control out.")
        return [json.loads(path.read_text())["control"] for path in paths]

    # The two arms ------------------------------------------------------------------------------------------------------------------------

    def _self_play(self, t: int, before: dict[str, Any] | None) -> dict[str, Any]:
        if before is None:
            return {**self._measure(self.team, 0, "self_play"), "ledger": asdict(Ledger())}
        players = self.team.players(t)
        sampled = [self._samples(k + 1) for k in lineup(t, self.opponents)]
        pairs, equal = self._pairs(t, players, sampled)
        if not self.team.has(t):
            self.team.load(t - 1, self.model)
            folder = self.out / "training"
            args = _rounds.pair_config(self.settings, folder / f"team-{t}", self.steps, self._seed(t, 1))
            tokens = _rounds.train_pairs(self.model, self.tokenizer, pairs, self.objective, args)
            self.team.save(t, self.model, self.tokenizer, training_tokens=tokens)
        shutil.rmtree(self.out / "training" / f"team-{t}", ignore_errors=True)
        own, ends = sampled[-1], set(end_ids(self.model, self.tokenizer))
        ledger = Ledger(**before["self_play"]["ledger"])
        ledger.updates, ledger.lessons = ledger.updates + self.steps, ledger.lessons + 1
        ledger.rollouts, ledger.rejected_rollouts = ledger.rollouts + len(own), ledger.rejected_rollouts + equal
        ledger.tokens += sum(map(len, own.reply_N))
        ledger.training_tokens += self.team.card(t)["training_tokens"]
        return {
            "players": len(players), "pairs": len(pairs), "equal": equal,
            "cut": sum(reply[-1] not in ends for reply in own.reply_N) / len(own),
            **self._measure(self.team, t, "self_play", samples=(f"samples-{t}", own)), "ledger": asdict(ledger),
        }  # fmt: skip

    def _control(self, t: int, before: dict[str, Any] | None) -> dict[str, Any]:
        """Longer supervised training, a round of it."""
        if before is None:
            return {**self._measure(self.team, 0, "control"), "ledger": asdict(Ledger())}
        if not self.control.has(t):
            (self.team if t == 1 else self.control).load(t - 1, self.model)
            folder, seed = self.out / "training" / f"control-{t}", self._seed(t, 2)
            args = _rounds.supervised_config(self.settings, self.plan["control_settings"], folder, self.steps, seed)
            tokens = _rounds.train_supervised(self.model, self.tokenizer, self.targets, args, seed)
            self.control.save(t, self.model, self.tokenizer, training_tokens=tokens)
        shutil.rmtree(self.out / "training" / f"control-{t}", ignore_errors=True)
        ledger = Ledger(**before["control"]["ledger"])
        ledger.updates += self.steps
        ledger.training_tokens += self.control.card(t)["training_tokens"]
        return {**self._measure(self.control, t, "control"), "ledger": asdict(ledger)}

    # Stages ------------------------------------------------------------------------------------------------------------------------------

    def _seed(self, *place: int) -> int:
        return int(np.random.SeedSequence([self.plan["seed"], *place]).generate_state(1)[0] % 2**31)

    def _samples(self, t: int) -> Replies:
        """The replies sampled in round t, from checkpoint t − 1."""
        path = self.out / "samples" / f"round-{t}.npz"
        manifest = {"player": self.team.card(t - 1)["fingerprint"], "demonstrations": self.targets.digest, "format": self.plan["format"]}
        if not path.is_file():
            sampling = {**self.plan["sampling"], "seed": self._seed(t, 0)}
            reply_N = self.team.demonstrate(self.model, t - 1, list(self.targets.prompt_N), self.tokenizer, **sampling)
            lengths = np.array([len(reply) for reply in reply_N])
            save_state(path, {"manifest": manifest, "length_N": lengths, "ids": np.concatenate([np.asarray(r) for r in reply_N])})
        found = load_state(path)
        _compare(found["manifest"], manifest, list(manifest), f"The samples in {path} are not this run's")
        parts = np.split(found["ids"], np.cumsum(found["length_N"])[:-1])
        return Replies(self.targets.prompt_N, [part.tolist() for part in parts])

    def _pairs(self, t: int, players: list[int], sampled: list[Replies]) -> tuple[datasets.Dataset, int]:
        """The pairs of some rounds with their scores under the players, and how many of the newest samples equal their demonstration."""
        target_NJ = self.team.score(self.model, players, "targets", self.targets, self.tokenizer, **self.scoring)
        columns: dict[str, list[Any]] = {name: [] for name in ("prompt_ids", "chosen_ids", "rejected_ids", *_rounds.REFERENCES)}
        kept_P = np.zeros(0, dtype=np.int64)
        for k, replies in zip(lineup(t, self.opponents), sampled, strict=True):
            both = list(zip(self.targets.reply_N, replies.reply_N, strict=True))
            kept_P = build_pairs([[1, 0]] * len(both), replies=both, same="drop", min_pairs=0).task_P
            sample_NJ = self.team.score(self.model, players, f"samples-{k + 1}", replies, self.tokenizer, **self.scoring)
            for name, source in zip(columns, (self.targets.prompt_N, self.targets.reply_N, replies.reply_N), strict=False):
                columns[name] += [source[n] for n in kept_P.tolist()]
            for name, score_NJ in zip(_rounds.REFERENCES, (target_NJ, sample_NJ), strict=True):
                columns[name] += score_NJ[kept_P].tolist()
        if len(kept_P) == 0:
            raise TutelageError(
                f"Round {t}: every one of {len(self.targets)} samples equals its demonstration, so there is no pair to learn from. The "
                f"model knows the demonstrations by heart: stop after round {t - 1}, or bring harder ones."
            )
        return datasets.Dataset.from_dict(columns), len(self.targets) - len(kept_P)

    def _measure(self, team: CheckpointTeam, t: int, arm: str, samples: tuple[str, Replies] | None = None) -> dict[str, Any]:
        """The drift of whole replies against the start, and what the callbacks say."""
        sets = {"target_drift": ("targets", self.targets)}
        if len(self.held_out):
            sets["held_out_drift"] = ("held-out", self.held_out)
        if samples is not None:
            sets["sample_drift"] = samples
        found: dict[str, Any] = {}
        for key, (name, replies) in sets.items():
            start_NJ = self.team.score(self.model, [0], name, replies, self.tokenizer, **self.scoring)
            now_NJ = team.score(self.model, [t], name, replies, self.tokenizer, **self.scoring)
            found[key] = float((now_NJ - start_NJ).mean())
        if self.after:
            team.load(t, self.model)
        metrics: dict[str, float] = {}
        for callback in self.after:
            metrics |= {key: float(value) for key, value in callback(Moment(t, arm, self.model, self.tokenizer)).items()}
        return {**found, "metrics": metrics}


def _compare(found: dict[str, Any], wanted: dict[str, Any], keys: list[str], what: str) -> None:
    differ = [f"{key} was {found.get(key)!r} and is {wanted[key]!r}" for key in keys if found.get(key) != wanted[key]]
    if differ:
        raise TutelageError(f"{what}: {'; '.join(differ)}. Give the same arguments as before, or another folder.")


def _frozen_digest(model: Any) -> str:
    """128 bits of the parameters that are not trained, a sample of their values: an adapter's base is in no checkpoint."""
    digest = blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().flatten()
            some = flat[:: max(1, flat.numel() // 64)].float().cpu().numpy()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.tobytes())
    return digest.hexdigest()


def _warnings(report: dict[str, Any]) -> list[str]:
    found = []
    for key, of in (("target_drift", "the demonstrations"), ("held_out_drift", "held-out demonstrations")):
        drift = report["self_play"].get(key, 0.0)
        if drift < 0:
            found.append(
                f"Round {report['round']}: the log-probability of {of} is {-drift:.3g} nats per reply below the start's. The loss pushes "
                "both sides down: take fewer steps or a lower learning rate, or raise target_multiplier."
            )
    return found
