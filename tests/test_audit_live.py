"""The live audit: reads each row once, keeps its level over all looks, stops a faulty run; three lines in a TRL script."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.audits.live import GROWTH, Watch
from tutelage.audits.rewards import rewards
from tutelage.errors import TutelageError
from tutelage.rates import binomial_p
from tutelage.rollouts.tail import RolloutTail
from tutelage.testing.rollout_logs import write_log


def follow(path: Path, lines: list[bytes], at_a_time: int, **given: Any) -> Watch:
    """A watch over a log that grows."""
    watch = Watch(path, **given)
    with path.open("wb") as log:
        for start in range(0, len(lines), at_a_time):
            log.write(b"".join(lines[start : start + at_a_time]))
            log.flush()
            watch.read()
            if watch.due:
                watch.look()
    watch.look()
    return watch


def rows(tmp_path: Path, **given: Any) -> list[bytes]:
    return write_log(tmp_path / "whole.jsonl", **given).read_bytes().splitlines(keepends=True)


def test_the_last_look_says_what_the_audit_of_the_whole_log_says(tmp_path: Path) -> None:
    lines = rows(tmp_path, seed=3, fault="misranked")
    watch = follow(tmp_path / "log.jsonl", lines, 36)
    assert watch.verdict is not None
    assert 5 <= watch.looks <= 10
    level = 0.05 * 6 / (np.pi * watch.looks) ** 2
    whole = rewards(tmp_path / "log.jsonl", rng=np.random.default_rng(0), level=level)
    assert [(c.name, c.p_holm, c.severity, c.finding) for c in watch.verdict.checks] == [
        (c.name, c.p_holm, c.severity, c.finding) for c in whole.checks
    ]
    assert watch.verdict.severity == "high"
    assert watch.verdict.false_positive_rate == 0.05
    assert watch.verdict.command == whole.command


def test_a_new_finding_comes_with_evidence_and_looks_grow_rarer(tmp_path: Path) -> None:
    lines, path = rows(tmp_path, seed=3, fault="misranked"), tmp_path / "log.jsonl"
    watch, looked = Watch(path), []
    for end in range(36, len(lines) + 1, 36):
        path.write_bytes(b"".join(lines[:end]))
        assert watch.read() == 36
        if watch.due:
            verdict = watch.look()
            assert verdict is not None
            looked.append(end)
            if verdict.found:
                break
    assert all(later >= GROWTH * earlier for earlier, later in pairwise(looked))
    evidence = verdict.worst.evidence
    assert evidence
    line = json.loads(lines[int(evidence[0]["where"].rpartition("line ")[2]) - 1])
    assert line["prompt_id"] == evidence[0]["prompt_id"]
    assert watch.look() is None


def test_the_level_holds_over_all_looks(tmp_path: Path) -> None:
    alarms = 0
    for seed in range(40):
        lines = rows(tmp_path, seed=seed, steps=16, tasks=4, attempts=4, pool=30)
        watch = follow(tmp_path / "log.jsonl", lines, 16, level=0.2)
        assert watch.verdict is not None
        alarms += watch.verdict.found
    assert binomial_p(alarms, 40, 0.2) > 0.01


def test_the_tail_leaves_half_lines_and_names_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = RolloutTail(path)
    assert tail.read() is None
    row = {"step": 0, "prompt_id": "é", "completion": "x", "reward": 1.0, "solved": None, "colour": 1}
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    path.write_bytes(line + b"\n" + line[:20])
    chunk = tail.read()
    assert chunk is not None
    assert (chunk.prompt_id_B, tail.read()) == (["é"], None)
    path.write_bytes(line + b"\n" + line * 3)
    chunk = tail.read(most=10)  # less than a line
    assert chunk is not None
    assert chunk.line_B.tolist() == [3]
    rest = tail.read()
    assert rest is not None
    assert rest.line_B.tolist() == [4, 5]
    assert [(w.what.split(" is none")[0], w.count) for w in tail.warnings] == [("the column 'colour'", 1)]
    for bad, said in ((b"{\n", "line 6 is not valid JSON"), (b"[]\n", "holds list"), (b'{"step": 1}\n', "line 6 lacks 'prompt_id'")):
        path.write_bytes(line + b"\n" + line * 3 + bad)
        with pytest.raises(TutelageError, match=said):
            tail.read()
        tail._offset, tail._lines = tail._offset - len(bad), tail._lines - 1
    path.write_bytes(line)
    with pytest.raises(TutelageError, match="became shorter"):
        tail.read()
    path.unlink()
    path.mkdir()
    with pytest.raises(TutelageError, match="Cannot read"):
        tail.read()
    with pytest.raises(TutelageError, match="only a log in JSON Lines can be followed"):
        RolloutTail(tmp_path / "log.parquet")


def test_a_watch_checks_its_settings() -> None:
    with pytest.raises(TutelageError, match="Did you mean 'misranked'"):
        Watch("log.jsonl", misrankd=0.1)
    with pytest.raises(TutelageError, match="expected a share"):
        Watch("log.jsonl", level=0.0)


def test_the_live_audit_is_found_without_torch() -> None:
    code = "import sys, tutelage.audits.live, tutelage.audits.page; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.lm
def test_three_lines_in_a_trl_script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trl = pytest.importorskip("trl")
    import tiny
    from tutelage.audits.live import LiveAudit, RewardLog

    def against(completions: list[Any], **columns: Any) -> list[float | None]:
        return [2.0 - 2.0 * found for found in tiny.has_a(completions)]

    log = RewardLog(tmp_path / "rollouts.jsonl", solved="has_a")
    audit = LiveAudit(log.path, stop_at="high", page=tmp_path / "page.html")
    trainer = trl.GRPOTrainer(
        tiny.model(), log.around([tiny.has_a, against]), args=tiny.grpo_config(tmp_path, max_steps=20, learning_rate=0.0),
        train_dataset=tiny.tasks()[0], processing_class=tiny.tokenizer(), callbacks=[audit],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step < 20
    assert audit.verdict is not None
    assert "misranked" in {check.name for check in audit.verdict.checks if check.found}
    assert audit.verdict.found
    assert any("misranked (high)" in record.message for record in caplog.records)
    entries = trainer.state.log_history
    assert any(entry.get("audit/finding") == "misranked" for entry in entries)
    assert [entry["audit/severity"] for entry in entries if "audit/severity" in entry and "reward" in entry][-1:] in ([3], [])
    assert "best paid attempt is a failed one" in (tmp_path / "page.html").read_text(encoding="utf-8")
    first = json.loads(log.path.read_text().splitlines()[0])
    assert first["reward"] == first["reward/has_a"] + first["reward/against"]
    assert first["solved"] == first["reward/has_a"] == float("a" in first["completion"])


@pytest.mark.lm
def test_a_log_that_cannot_be_read_ends_the_audit_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    from transformers import TrainerControl, TrainerState

    from tutelage.audits.live import LiveAudit

    path = tmp_path / "log.jsonl"
    path.write_text("no json\n")
    audit, control = LiveAudit(path, stop_at="low"), TrainerControl()
    for _ in range(2):
        audit.on_step_end(None, TrainerState(), control)
    audit.on_train_end(None, TrainerState(), control)
    assert [record.message for record in caplog.records if "ends here" in record.message and "line 1" in record.message]
    assert len(caplog.records) == 1
    assert not control.should_training_stop
    with pytest.raises(TutelageError, match="Did you mean 'high'"):
        LiveAudit(path, stop_at="hihg")  # type: ignore[arg-type]


@pytest.mark.lm
def test_what_a_reward_log_cannot_log_is_refused(tmp_path: Path) -> None:
    from tutelage.trainers.reward_log import RewardLog

    async def later(completions: list[Any], **columns: Any) -> list[float]:
        return []

    def right(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0 for _ in completions]

    path = tmp_path / "log.jsonl"
    with pytest.raises(TutelageError, match="ordinary reward functions"):
        RewardLog(path, solved=None).around([later])
    with pytest.raises(TutelageError, match="Did you mean 'right'"):
        RewardLog(path, solved="rigth").around(right)
    with pytest.raises(TutelageError, match="tells them apart by name"):
        RewardLog(path, solved=None).around([right, right])
    with pytest.raises(TutelageError, match="1 entries for 2"):
        RewardLog(path, solved=None, weights=[1.0]).around([right, later_free])
    (only,) = RewardLog(path, solved="right", weights=[0.5]).around(right)
    only(prompts=["p", [{"role": "user", "content": "q"}]], completions=["x", None])
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["prompt"], row["completion"], row["reward"], row["solved"]) for row in logged] == [
        ("p", "x", 0.5, 1.0),
        ("q", "", 0.5, 1.0),
    ]


def later_free(completions: list[Any], **columns: Any) -> list[float]:
    return [0.0 for _ in completions]
