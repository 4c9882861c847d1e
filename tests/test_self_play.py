"""Self-play: the rounds' players and pairs, one template, caches that refuse other data, runs killed and resumed to the same weights."""
# ruff: noqa: E402

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.lm
trl = pytest.importorskip("trl")

import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, Trainer

import tiny
from tutelage.errors import TutelageError
from tutelage.objectives import objective
from tutelage.registry import teachers
from tutelage.teachers.replies import Replies, encode_reply, end_ids, format_digest, sample_replies, score_replies
from tutelage.teachers.team import CheckpointTeam, lineup
from tutelage.trainers import _rounds
from tutelage.trainers.self_play import Moment, self_play

TOKENIZER = tiny.tokenizer()
DEMOS = [{"prompt": f"{i:02d}=", "completion": "ab" * (1 + i % 2)} for i in range(12)]
SETTINGS = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_checkpointing": False}


def play(out: Path, part: Any = "tpaw", *, model: Any = None, demos: Any = DEMOS, **options: Any) -> Any:
    defaults: dict[str, Any] = {"out": out, "rounds": 4, "steps": 2, "max_new_tokens": 4, "settings": SETTINGS}
    return self_play(model or tiny.model(), TOKENIZER, demos, part, **defaults | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, list[Any]]:
    """A whole run of four rounds: its folder, its model, its record, and what its callback saw."""
    out, model, seen = tmp_path_factory.mktemp("run"), tiny.model(), []

    def look(moment: Moment) -> dict[str, float]:
        seen.append((moment.arm, moment.round, tiny.weights(moment.model)))
        return {"norm": float(np.linalg.norm(tiny.weights(moment.model).view(np.float32)))}

    return out, model, play(out, model=model, held_out=DEMOS[:3], after_round=[look]), seen


def copied(finished: Any, to: Path) -> Path:
    shutil.copytree(finished[0], to)
    return to


# --- replies


def test_a_reply_is_encoded_as_it_is_sampled() -> None:
    ends = end_ids(tiny.model(), TOKENIZER)
    assert ends == [1]
    prompt, reply = encode_reply(TOKENIZER, "01=", "ab", ends=ends)
    assert TOKENIZER.decode(prompt + reply) == "01=ab$"
    chat = [[{"role": "user", "content": "01="}], [{"role": "assistant", "content": "ab"}]]
    prompt, reply = encode_reply(TOKENIZER, *chat, ends=ends)
    assert TOKENIZER.decode(prompt) == "u:01=a:"
    assert TOKENIZER.decode(reply) == "ab$"
    longer = tiny.tokenizer()
    longer.chat_template = tiny.CHAT.replace("{{ '$' }}", "{{ '$ ' }}")  # as templates that write a line break after the end token
    assert encode_reply(longer, *chat, ends=ends)[1] == reply
    assert format_digest(longer) != format_digest(TOKENIZER)
    longer.chat_template = tiny.CHAT.replace("a:{% endif %}", "b:{% endif %}")
    with pytest.raises(TutelageError, match="asked one thing and trained on another"):
        encode_reply(longer, *chat)


def test_samples_are_the_policys_own() -> None:
    """Left padding, batches and the model's generation settings do not change the distribution; global random states stay."""
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    model.generation_config = GenerationConfig(top_k=1, repetition_penalty=3.0, eos_token_id=1, pad_token_id=0)
    prompts = [encode_reply(TOKENIZER, p, "a")[0] for p in ("0=", "0123=")] * 600
    state = torch.get_rng_state()
    replies = sample_replies(model, prompts, seed=3, ends=[1], pad=0, max_new_tokens=3, batch_size=500)
    assert torch.equal(torch.get_rng_state(), state)
    assert replies == sample_replies(model, prompts, seed=3, ends=[1], pad=0, max_new_tokens=3, batch_size=500)
    assert model.generation_config.top_k == 1
    for first in (0, 1):
        with torch.no_grad():
            expected_V = model(torch.tensor([prompts[first]])).logits[0, -1].softmax(-1).numpy()
        count_V = np.bincount([reply[0] for reply in replies[first::2]], minlength=43)
        spread_V = np.sqrt(600 * expected_V * (1 - expected_V))
        assert (np.abs(count_V - 600 * expected_V) < 4.5 * spread_V + 1).all()
    assert all(len(reply) <= 3 and 1 not in reply[:-1] for reply in replies)


def test_scores_are_log_probabilities() -> None:
    model = tiny.model()
    pairs = [encode_reply(TOKENIZER, f"{'9' * n}=", "ab" * n) for n in range(1, 5)]
    replies = Replies([p for p, _ in pairs], [r for _, r in pairs])
    expected = []
    for prompt, reply in pairs:
        with torch.no_grad():
            logp = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        expected.append(sum(logp[len(prompt) - 1 + t, token].item() for t, token in enumerate(reply)))
    for batch_size in (1, 3, 16):
        np.testing.assert_allclose(score_replies(model, replies, pad=0, batch_size=batch_size), expected, rtol=1e-5)
    with pytest.raises(TutelageError, match="reply 1 has no token"):
        Replies([[1], [2]], [[3], []])


# --- rounds


def test_who_plays() -> None:
    assert [lineup(t, 3) for t in (1, 2, 3, 4, 5)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert [lineup(t, 1) for t in (1, 2, 3)] == [[0], [1], [2]]


def test_rounds_grow_to_the_team(finished: Any) -> None:
    out, model, record, seen = finished
    reports = [report["self_play"] for report in record.rounds]
    assert [r.get("players") for r in reports] == [None, 1, 2, 3, 3]
    assert [r.get("pairs") for r in reports] == [None, 12, 24, 36, 36]
    assert [r["ledger"]["updates"] for r in reports] == [0, 2, 4, 6, 8]
    assert record.ledger.rollouts == 48
    assert record.ledger.tokens == sum(sum(map(len, samples(out, t))) for t in (1, 2, 3, 4))
    controls = [report["control"] for report in record.rounds]
    assert [c["ledger"]["updates"] for c in controls] == [0, 2, 4, 6, 8]
    assert controls[-1]["ledger"]["rollouts"] == 0
    np.testing.assert_array_equal(tiny.weights(model), seen[-2][2])
    assert [(arm, t) for arm, t, _ in seen] == [(arm, t) for t in range(5) for arm in ("self_play", "control")]
    np.testing.assert_array_equal(seen[0][2], tiny.weights(tiny.model()))
    np.testing.assert_array_equal(seen[0][2], seen[1][2])
    assert reports[2]["metrics"]["norm"] != controls[2]["metrics"]["norm"] != controls[1]["metrics"]["norm"]
    assert type(model).forward is model.forward.__func__  # nothing of an engine is left hanging on it


def samples(out: Path, t: int) -> list[list[int]]:
    from tutelage.state import load_state

    found = load_state(out / "samples" / f"round-{t}.npz")
    return [part.tolist() for part in np.split(found["ids"], np.cumsum(found["length_N"])[:-1])]


def test_the_drift_is_that_of_the_weights(finished: Any) -> None:
    out, model, record, _ = finished
    ids = [encode_reply(TOKENIZER, d["prompt"], d["completion"], ends=[1]) for d in DEMOS]
    targets = Replies([p for p, _ in ids], [r for _, r in ids])
    gained_N = score_replies(model, targets, pad=0) - score_replies(tiny.model(), targets, pad=0)
    report = record.rounds[-1]["self_play"]
    assert report["target_drift"] == pytest.approx(gained_N.mean(), abs=1e-4)
    assert report["held_out_drift"] == pytest.approx(gained_N[:3].mean(), abs=1e-4)
    assert report["target_drift"] > 0
    assert record.warnings == []
    control = tiny.LlamaForCausalLM.from_pretrained(out / "control" / "player-4")
    gained_N = score_replies(control, targets, pad=0) - score_replies(tiny.model(), targets, pad=0)
    assert record.rounds[-1]["control"]["target_drift"] == pytest.approx(gained_N.mean(), abs=1e-4)


def test_pairs_are_demonstrations_over_own_samples(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer gets in round 3: every demonstration over the samples of three rounds, scored by the three players."""
    out = copied(finished, tmp_path / "run")
    for path in (out / "team" / "player-3", out / "team" / "player-4"):
        shutil.rmtree(path)
    for t in (3, 4):
        (out / f"round-{t}.json").unlink()
    given: list[Any] = []

    def stop(model: Any, tokenizer: Any, pairs: Any, *args: Any) -> int:
        given.append(pairs)
        raise KeyboardInterrupt

    monkeypatch.setattr(_rounds, "train_pairs", stop)
    with pytest.raises(KeyboardInterrupt):
        play(out, held_out=DEMOS[:3])
    pairs = given[0]
    ids = [encode_reply(TOKENIZER, d["prompt"], d["completion"], ends=[1]) for d in DEMOS]
    assert pairs["prompt_ids"][:] == [p for p, _ in ids] * 3
    assert pairs["chosen_ids"][:] == [r for _, r in ids] * 3
    assert pairs["rejected_ids"][:] == [reply for t in (1, 2, 3) for reply in samples(out, t)]
    for j in range(3):
        player = tiny.LlamaForCausalLM.from_pretrained(out / "team" / f"player-{j}")
        for side in ("chosen", "rejected"):
            expected = score_replies(player, Replies(pairs["prompt_ids"][:], pairs[f"{side}_ids"][:]), pad=0)
            np.testing.assert_allclose(np.array(pairs[f"ref_{side}_logp"][:])[:, j], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "options", "players", "pairs"),
    [
        ("spin", {}, [1, 1, 1], [12, 24, 24]),
        ("tpaw", {"team": 1}, [1, 1, 1], [12, 12, 12]),
        (objective("tpaw", target_multiplier=1.0), {"team": 2, "opponents": 1}, [1, 2, 2], [12, 12, 12]),
    ],
    ids=["spin", "no team", "objective"],
)
def test_one_driver_for_all(tmp_path: Path, finished: Any, part: Any, options: Any, players: list[int], pairs: list[int]) -> None:
    record = play(tmp_path, part, rounds=3, held_out=DEMOS[:3], reuse_control=finished[0], **options)
    reports = [report["self_play"] for report in record.rounds[1:]]
    assert [r["players"] for r in reports] == players
    assert [r["pairs"] for r in reports] == pairs
    assert [r["control"] for r in record.rounds] == [r["control"] for r in finished[2].rounds[:4]]
    assert not (tmp_path / "control" / "player-1").exists()


def test_samples_that_equal_their_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {tuple(p): r for p, r in (encode_reply(TOKENIZER, d["prompt"], d["completion"], ends=[1]) for d in DEMOS)}
    keep = {"n": 8}

    def recite(model: Any, prompt_N: Any, **options: Any) -> Any:
        return [right[tuple(p)] if n < keep["n"] else [9, 9] for n, p in enumerate(prompt_N)]

    monkeypatch.setattr("tutelage.teachers.team.sample_replies", recite)
    report = play(tmp_path / "some", rounds=1).rounds[1]["self_play"]
    assert (report["pairs"], report["equal"], report["ledger"]["rejected_rollouts"], report["cut"]) == (4, 8, 8, pytest.approx(4 / 12))
    keep["n"] = 12
    with pytest.raises(TutelageError, match="every one of 12 samples equals its demonstration"):
        play(tmp_path / "all", rounds=1)


def test_a_falling_target_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A far too high learning rate."""
    settings = {**SETTINGS, "learning_rate": 1.0}
    with caplog.at_level(logging.WARNING):
        record = play(tmp_path, "spin", rounds=1, steps=12, settings=settings)
    drift = record.rounds[1]["self_play"]["target_drift"]
    assert drift < 0
    assert record.warnings == [w for w in caplog.messages if "below the start's" in w]
    assert len(record.warnings) == 1


# --- killed and resumed


class Killed(Exception):
    pass


def dies(function: Any, at: int) -> Any:
    calls = {"n": 0}

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == at:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


KILLS = [
    ("tutelage.teachers.team.sample_replies", 2),  # in the second round's sampling
    ("tutelage.teachers.team.score_replies", 7),  # in scoring
    ("tutelage.trainers.self_play.atomic_write", 4),  # after the second round's training, before its report
    ("tutelage.trainers._rounds.train_supervised", 2),
    ("transformers.Trainer.training_step", 11),  # within the second round's training, after a checkpoint
]


@pytest.mark.parametrize(("where", "at"), KILLS, ids=[where.rpartition(".")[2] for where, _ in KILLS])
def test_killed_and_resumed(tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str, at: int) -> None:
    function = Trainer.training_step if where.startswith("transformers") else _named(where)
    with monkeypatch.context() as patch:
        patch.setattr(where, dies(function, at))
        with pytest.raises(Killed):
            short(tmp_path)
    model = tiny.model()
    record = short(tmp_path, model)
    np.testing.assert_array_equal(tiny.weights(model), whole["weights"])
    assert record.rounds == whole["rounds"]
    control = tiny.LlamaForCausalLM.from_pretrained(tmp_path / "control" / "player-2")
    np.testing.assert_array_equal(tiny.weights(control), whole["control"])


def _named(where: str) -> Any:
    module, _, name = where.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def short(out: Path, model: Any = None) -> Any:
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 2}
    return play(out, model=model, rounds=2, steps=4, settings=settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out, model = tmp_path_factory.mktemp("whole"), tiny.model()
    record = short(out, model)
    control = tiny.LlamaForCausalLM.from_pretrained(out / "control" / "player-2")
    assert not list((out / "training").iterdir())
    return {"weights": tiny.weights(model), "rounds": record.rounds, "control": tiny.weights(control)}


def test_a_finished_run_takes_more_rounds(tmp_path: Path, whole: dict[str, Any]) -> None:
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 2}
    first = play(tmp_path, rounds=1, steps=4, settings=settings)
    assert first.rounds == whole["rounds"][:2]
    model = tiny.model()
    assert short(tmp_path, model).rounds == whole["rounds"]
    np.testing.assert_array_equal(tiny.weights(model), whole["weights"])


def test_adapters_are_players(tmp_path: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(5)
        return get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))

    model = adapted()
    record = play(tmp_path, model=model, rounds=2)
    assert record.rounds[2]["self_play"]["players"] == 2
    player = tmp_path / "team" / "player-2"
    assert {p.name for p in player.glob("*.safetensors")} == {"adapter_model.safetensors"}
    base = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    for name, p in adapted().named_parameters():
        assert name not in base or torch.equal(base[name], p)
    again = adapted()
    play(tmp_path, model=again, rounds=2)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    moved = adapted()
    with torch.no_grad():
        moved.get_base_model().lm_head.weight.add_(1)
    with pytest.raises(TutelageError, match="another run: frozen was"):
        play(tmp_path, model=moved, rounds=2)


# --- what is refused


def test_a_missing_checkpoint(finished: Any, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "run")
    shutil.rmtree(out / "team" / "player-3")
    with pytest.raises(TutelageError, match=r"against a team of 3 checkpoints, and .*player-3 is not there"):
        play(out, rounds=5, held_out=DEMOS[:3])


def test_other_scores_are_refused(finished: Any, tmp_path: Path) -> None:
    team = CheckpointTeam(copied(finished, tmp_path / "run") / "team")
    ids = [encode_reply(TOKENIZER, d["prompt"], d["completion"], ends=[1]) for d in DEMOS]
    replies = Replies([p for p, _ in ids], [r for _, r in ids])
    before = team.score(tiny.model(), [0, 1], "targets", replies, TOKENIZER)
    assert before.shape == (12, 2)
    with pytest.raises(TutelageError, match="are of other replies, so they would be wrong references"):
        team.score(tiny.model(), [0], "targets", Replies(replies.prompt_N[1:], replies.reply_N[1:]), TOKENIZER)
    other = tiny.tokenizer()
    other.chat_template += " "
    with pytest.raises(TutelageError, match="are of another tokenizer or chat template"):
        team.score(tiny.model(), [0], "targets", replies, other)
    shutil.copy(team.path(2) / "player.json", team.path(1) / "player.json")
    with pytest.raises(TutelageError, match="are of another player"):
        team.score(tiny.model(), [1], "targets", replies, TOKENIZER)
    with pytest.raises(TutelageError, match="were changed after they were saved"):
        team.load(1, tiny.model())


def test_another_run_is_refused(finished: Any, tmp_path: Path) -> None:
    out = finished[0]
    for options, message in (
        ({"steps": 3}, "holds another run: steps was 2 and is 3"),
        ({"demos": DEMOS[1:]}, "demonstrations was"),
        ({"settings": {**SETTINGS, "learning_rate": 1e-3}}, "settings was"),
    ):
        with pytest.raises(TutelageError, match=message):
            play(out, held_out=DEMOS[:3], **options)
        with pytest.raises(TutelageError, match=rf"control of {out} is of another run: {message.rpartition(': ')[2]}"):
            play(tmp_path / message, held_out=DEMOS[:3], reuse_control=out, **options)
    with pytest.raises(TutelageError, match="began from another start"):
        play(tmp_path / "start", model=tiny.model(3), held_out=DEMOS[:3], reuse_control=out)
    with pytest.raises(TutelageError, match=r"round-5.json is missing. It needs 5 finished rounds"):
        play(tmp_path / "longer", rounds=5, held_out=DEMOS[:3], reuse_control=out)
    assert json.loads((out / "self_play.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": objective("tpaw")}, "How many checkpoints play"),
        ({"rounds": 0}, "are at least 1; got 0"),
        ({"settings": {"learning_rat": 1e-3}}, "Did you mean 'learning_rate'"),
        ({"settings": {"max_steps": 3}}, "max_steps is chosen by self_play itself"),
        ({"settings": {"beta": 0.3}}, "beta is chosen by self_play itself"),
        ({"control_settings": {"loss_typ": "nll"}}, "Did you mean 'loss_type'"),
        ({"demos": []}, "There are no demonstrations"),
        ({"demos": [{"prompt": "a", "answer": "b"}]}, "Demonstration 0 has the columns prompt, answer"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TutelageError, match=message):
        play(tmp_path, **options)


def test_the_teacher_is_registered() -> None:
    assert teachers.build("checkpoint_team", "somewhere", size=2).size == 2
    with pytest.raises(TutelageError, match="at least one player"):
        CheckpointTeam("somewhere", size=0)


def test_a_tokenizer_without_padding(tmp_path: Path, whole: dict[str, Any]) -> None:
    bare = tiny.tokenizer()
    bare.pad_token = None
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 2}
    options = {"out": tmp_path, "rounds": 1, "steps": 4, "max_new_tokens": 4, "settings": settings}
    found = self_play(tiny.model(), bare, DEMOS, "tpaw", **options).rounds[1]["self_play"]
    assert found["pairs"] == whole["rounds"][1]["self_play"]["pairs"]
    assert np.isfinite(found["target_drift"])
