"""Rollout logs: what is read, what is refused, what is counted; the way from a trainer, from TRL and from verl."""

from __future__ import annotations

import json
import math
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.cli import main
from tutelage.errors import TutelageError
from tutelage.rollouts import Chunk, RolloutReader, RolloutWriter, from_trl, from_verl


def row(step: int = 0, prompt: str = "p", **more: Any) -> dict[str, Any]:
    return {"step": step, "prompt_id": prompt, "completion": "four", "reward": 1.0, "solved": 1.0} | more


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(path: Path, rows: int = 4096) -> tuple[list[Chunk], str]:
    reader = RolloutReader(path, rows=rows)
    chunks = list(reader)
    return chunks, "\n".join(map(str, reader.warnings))


FULL = row(
    prompt="2+2", group="g", tokens=[1, 2, 3], logprobs=[-0.1, -0.2, -0.3], source="math", span=[0, 4], **{"reward/format": 0.25}
)  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_round_trip_through_both_formats(tmp_path: Path, suffix: str) -> None:
    rows = [row(0, "a"), row(0, "a", reward=0.5, solved=None), row(1, "b"), row(1, "b", completion="ünï"), row(1, "c")]
    rows = [FULL | r for r in rows]
    path = tmp_path / f"log{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with RolloutWriter(path) as log:
        log.write(*rows[:2])
        log.write(*rows[2:])
    chunks, warnings = read(path, rows=2)
    assert warnings == ""
    assert [len(c) for c in chunks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([c.step_B for c in chunks]), [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(np.concatenate([c.reward_B for c in chunks]), [1, 0.5, 1, 1, 1])
    np.testing.assert_array_equal(np.concatenate([c.solved_B for c in chunks]), [1, math.nan, 1, 1, 1])
    assert [t for c in chunks for t in c.completion_B] == ["four", "four", "four", "ünï", "four"]
    assert [i for c in chunks for i in c.prompt_id_B] == list("aabbc")
    for name in ("tokens", "logprobs", "source", "span", "reward/format"):
        assert chunks[0].columns[name][0] == FULL[name]
    assert chunks[0].group_B == ["group g", "group g"]
    assert chunks[1].where(1) == (f"{path}, line 4" if suffix == ".jsonl" else f"{path / 'part-00001.parquet'}, row 2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rollouts"),
        ("\n \n", "holds no rollouts"),
        (json.dumps({"step": 0, "prompt_id": "a", "completion": "b", "rewards": 1, "solved": 1}) + "\n", "'rewards' meant as 'reward'"),
        (json.dumps({"input": "a", "output": "b", "score": 1, "step": 1}) + "\n", "from_verl"),
        (json.dumps({"prompt": "a", "completion": "b", "advantage": 1, "step": 1}) + "\n", "from_trl"),
        (json.dumps(row()) + "\n{broken}\n" + json.dumps(row()) + "\n", "line 2 is not valid JSON"),
        (json.dumps(row()) + "\n" + json.dumps({"step": 1}) + "\n", "line 2 lacks 'prompt_id', 'completion'"),
        ("[1]\n", "line 1 holds list"),
        ("{\n", "looks like indented JSON"),
        (json.dumps(row(step=-1)) + "\n", "step is -1"),
        (json.dumps(row(step=1.5)) + "\n", "step is 1.5"),
        (json.dumps(row(step=True)) + "\n", "step is True"),
        (json.dumps(row(reward="1.0")) + "\n", "reward is '1.0' of type str"),
        (json.dumps(row(solved=-0.5)) + "\n", "the shaped reward was logged in its place"),
        (json.dumps(row(prompt=None)) + "\n", "prompt_id is None"),  # type: ignore[arg-type]
        (json.dumps(row(completion=7)) + "\n", "completion is '7'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(TutelageError) as raised:
        list(RolloutReader(path))
    assert said in str(raised.value)
    assert "log.jsonl" in str(raised.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="There is no"):
        RolloutReader(tmp_path / "none.jsonl")
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(TutelageError, match=r"suffix '\.txt'"):
        RolloutReader(tmp_path / "log.txt")
    with pytest.raises(TutelageError, match="holds no file"):
        RolloutReader(tmp_path)
    pytest.importorskip("pyarrow")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TutelageError, match="cannot be read as Parquet"):
        list(RolloutReader(tmp_path / "log.parquet"))


def test_faults_that_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    body = [row(3, "a"), row(3, "a", reward=math.nan), row(3, "a", reward=None), row(2, "a", source="x"), row(2, "a", completion=None)]
    bad = json.dumps(row(4, completion="X")).encode().replace(b"X", b"caf\xe9")
    cut = json.dumps(row(4)).encode()[:-9]
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in body) + bad + b"\n" + cut)
    reader = RolloutReader(path)
    (chunk,) = reader
    assert len(chunk) == 6
    assert chunk.completion_B[5] == "caf�"
    assert np.isnan(chunk.reward_B).tolist() == [False, True, True, False, False, False]
    assert chunk.columns["source"] == [None, None, None, "x", None, None]
    found = {w.what.split(";")[0].split(" (")[0]: (w.count, w.first.rpartition(", ")[2]) for w in reader.warnings}
    assert found == {
        "rows whose columns differ from those of the row before": (2, "line 4"),
        "lines that are not UTF-8": (1, "line 6"),
        "last lines that were cut off and left out": (1, "line 7"),
        "completions that are null, read as empty": (1, "line 5"),
        "values of reward that are null, NaN or infinite": (2, "line 2"),
        "steps that are lower than the one before": (1, "line 4"),
    }
    again = list(reader)
    assert len(again[0]) == 6
    assert len(reader.warnings) == 6  # counted anew, not twice


def test_a_last_line_cut_within_a_character_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n" + '{"step": 0, "completion": "ü'.encode()[:-1])
    (chunk,), warnings = read(path)
    assert len(chunk) == 1
    assert "cut off" in warnings


def test_groups_unknown_columns_and_order_across_chunks(tmp_path: Path) -> None:
    alone, warnings = read(lines(tmp_path / "a.jsonl", *(row(i, str(i)) for i in range(5))), rows=2)
    assert "no two attempts belong together (same step, same group or prompt): nothing can be said of groups: 5" in warnings
    assert len(alone) == 3
    assert read(lines(tmp_path / "b.jsonl", row(0, "a"), row(1, "b"), row(1, "b"), row(2, "c")), rows=2)[1] == ""  # a group over two chunks
    _, warnings = read(lines(tmp_path / "c.jsonl", row(5), row(5), row(4), row(4)), rows=2)
    assert "steps that are lower" in warnings
    _, warnings = read(lines(tmp_path / "d.jsonl", row(colour="red"), row(colour="red")))
    assert "the column 'colour' is none of a rollout log's" in warnings


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for step in (10, 9, 2):
        lines(tmp_path / f"{step}.jsonl", row(step), row(step))
    chunks, warnings = read(tmp_path)
    assert [int(c.step_B[0]) for c in chunks] == [2, 9, 10]
    assert warnings == ""


def test_the_writer_mends_a_half_line_and_refuses_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    with RolloutWriter(path) as log:
        assert not path.exists()
        log.write(row(0), row(0, completion="\ud800 alone", reward=math.inf))
    path.write_bytes(path.read_bytes() + b'{"step": 1, "promp')
    with RolloutWriter(path) as log:
        log.write(row(1), row(1))
        assert len(path.read_bytes().splitlines()) == 4  # on disk at once
    (chunk,), warnings = read(path)
    assert chunk.step_B.tolist() == [0, 0, 1, 1]
    assert math.isnan(chunk.reward_B[1])
    assert "cut off" not in warnings
    with pytest.raises(TutelageError, match="has the unknown rewards"), RolloutWriter(path) as log:
        log.write(row(rewards=1.0))
    with pytest.raises(TutelageError, match=r"suffix \.jsonl or \.parquet"):
        RolloutWriter(tmp_path / "log.csv")


def test_a_million_rows_are_read_within_minutes_and_a_chunk_of_memory(tmp_path: Path) -> None:
    """A two-hundredth of a million rows of 200 tokens, at the rate of a million a minute, with room for a crowded machine."""
    path = tmp_path / "log.jsonl"
    rng = np.random.default_rng(0)
    path.write_text((json.dumps(row(7, tokens=rng.integers(0, 150_000, 200).tolist(), completion="word " * 200)) + "\n") * 5000)
    began = time.process_time()
    assert sum(len(chunk) for chunk in RolloutReader(path)) == 5000
    assert time.process_time() - began < 3 * 60 / 200
    tracemalloc.start()
    assert len(next(iter(RolloutReader(path)))) > 1000
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()


def test_a_chunk_is_full_by_bytes_too(tmp_path: Path) -> None:
    chunks, _ = read(lines(tmp_path / "log.jsonl", *[row(completion="x" * (3 << 20))] * 7))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]


def test_a_parquet_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.parquet"
    for step in range(3):  # three runs, each with a writer of its own
        log = RolloutWriter(path)
        log.write(row(step, reward=math.nan, completion="\ud800"), row(step, tokens=3))
        log.write()
        log.close()
    assert sorted(part.name for part in path.iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]
    chunks, warnings = read(path)
    assert np.concatenate([chunk.step_B for chunk in chunks]).tolist() == [0, 0, 1, 1, 2, 2]
    assert chunks[0].columns["tokens"] == [None, 3]
    assert chunks[0].completion_B[0] == "?"
    assert "values of reward that are null, NaN or infinite: 3" in warnings
    (tmp_path / "one.parquet").write_bytes(b"")
    with pytest.raises(TutelageError, match="is a file"):
        RolloutWriter(tmp_path / "one.parquet")


def test_parquet_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    text = pa.Array.from_buffers(pa.utf8(), 2, pa.array([b"caf\xe9", b"fine"]).buffers())
    columns = {"step": [0, 0], "prompt_id": ["a", "a"], "completion": text, "reward": [1.0, 0.0], "solved": [1.0, None]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "log.parquet")
    (chunk,), warnings = read(tmp_path / "log.parquet")
    assert chunk.completion_B == ["caf\ufffd", "fine"]
    assert "values that are not UTF-8; each bad byte is read as U+FFFD: 1" in warnings


# --- converters


def test_from_verl(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.mkdir()
    for step in (2, 10):
        rows = [{"input": "2+2=", "output": str(i), "gts": "4", "score": i - 0.5, "step": step, "acc": bool(i)} for i in (0, 1)]
        lines(dump / f"{step}.jsonl", *rows)
    assert from_verl(dump, tmp_path / "log.jsonl") == 4
    (chunk,), warnings = read(tmp_path / "log.jsonl")
    assert warnings == ""
    assert chunk.step_B.tolist() == [2, 2, 10, 10]
    assert chunk.reward_B.tolist() == [-0.5, 0.5, -0.5, 0.5]
    assert chunk.solved_B.tolist() == [0, 1, 0, 1]
    assert len(set(chunk.prompt_id_B)) == 1
    assert chunk.columns["prompt"][0] == "2+2="
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(TutelageError, match="Unknown column"):
        from_verl(dump, tmp_path / "log.jsonl", solved="accuracy")
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_from_trl(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    chat = [[{"role": "user", "content": "2+2="}]] * 2
    said = [[{"role": "assistant", "content": c}] for c in "45"]
    first = {"prompt": chat, "completion": said, "right": [1.0, 0.0], "tidy": [None, 0.5], "note": ["x", "y"], "advantage": [0.7, -0.7]}
    for step, table in ((1, first), (2, first), (3, first | {"right": [0.0, 0.0]})):
        pd.DataFrame({"step": [step] * 2, **table}).to_parquet(tmp_path / f"completions_{step:05d}.parquet")
    assert from_trl(tmp_path, tmp_path / "log.jsonl", solved="right", rewards={"right": 2.0, "tidy": 1.0}) == 4  # step 2 is step 1 again
    (chunk,), _ = read(tmp_path / "log.jsonl")
    assert chunk.step_B.tolist() == [1, 1, 3, 3]
    assert chunk.reward_B.tolist() == [2.0, 0.5, 0.0, 0.5]
    assert chunk.solved_B.tolist() == [1, 0, 0, 0]
    assert chunk.completion_B == ["4", "5", "4", "5"]
    assert from_trl(tmp_path, tmp_path / "log.jsonl", solved=None) == 4  # by default every column of numbers counts
    (chunk,), _ = read(tmp_path / "log.jsonl")
    assert chunk.reward_B.tolist() == [1.0, 0.5, 0.0, 0.5]
    assert np.isnan(chunk.solved_B).all()
    with pytest.raises(TutelageError, match="Did you mean 'right'"):
        from_trl(tmp_path, tmp_path / "log.jsonl", solved="rights")


@pytest.mark.lm
def test_a_trainer_writes_its_log(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    import tiny
    import tutelage as tt
    from tutelage.trainers.rollout_log import RolloutLog
    from tutelage.trainers.trl import with_curriculum

    data, pool = tiny.tasks()
    lessons: list[Any] = []
    with_curriculum(trl.GRPOTrainer)(
        tiny.model(), [tiny.digits, tiny.has_a], args=tiny.grpo_config(tmp_path, reward_weights=[2.0, 0.5]), train_dataset=data,
        processing_class=tiny.tokenizer(), curriculum=tt.curriculum("uniform", pool, seed=3), solved="has_a",
        lesson_callbacks=[RolloutLog(tmp_path / "log.jsonl"), lessons.append],
    ).train()  # fmt: skip
    (chunk,), warnings = read(tmp_path / "log.jsonl")
    assert warnings == ""
    np.testing.assert_allclose(chunk.reward_B, np.concatenate([x.outcomes.reward_NG.ravel() for x in lessons]))
    np.testing.assert_array_equal(chunk.solved_B, np.concatenate([x.outcomes.solved_NG.ravel() for x in lessons]))
    np.testing.assert_array_equal(chunk.columns["tokens"], np.concatenate([x.outcomes.length_NG.ravel() for x in lessons]))
    assert chunk.prompt_id_B == [str(k) for x in lessons for k in np.repeat(x.outcomes.key_N, 4)]
    assert chunk.columns["prompt"] == [f"{row:02d}=" for x in lessons for row in np.repeat(x.rows_N, 4)]
    np.testing.assert_allclose(chunk.columns["reward/digits"], tiny.digits(chunk.completion_B), rtol=1e-6)
    np.testing.assert_array_equal(chunk.solved_B, tiny.has_a(chunk.completion_B))
    assert len(set(chunk.group_B)) == len(chunk) / 4
    assert chunk.columns["source"] == [str(pool.arms().arm_N[row]) for x in lessons for row in np.repeat(x.rows_N, 4)]


def test_whose_dump_it_is_shows_in_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", "audit", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    pytest.importorskip("pyarrow")
    verl = lines(tmp_path / "1.jsonl", *({"input": "2+2=", "output": str(i), "score": i - 0.5, "step": 1, "acc": bool(i)} for i in (0, 1)))
    verl.write_bytes(verl.read_bytes() + b'{"input": "cut')
    table = {"step": 3, "prompt": "p", "completion": "x", "advantage": 0.0}
    trl = lines(tmp_path / "trl.jsonl", table | {"right": 1.0, "tidy": 0.5}, table | {"right": 0.0, "tidy": 0.5})
    status, out, error = command(verl, "-o", tmp_path / "verl.parquet")
    assert (status, out) == (0, f"{tmp_path / 'verl.parquet'}: 2 attempts, from verl\n")
    assert error.startswith("warning: last lines that were cut off")
    (chunk,), _ = read(tmp_path / "verl.parquet")
    assert (chunk.reward_B.tolist(), chunk.solved_B.tolist()) == ([-0.5, 0.5], [0, 1])
    status, out, error = command(trl, "-o", tmp_path / "log.jsonl", "--weight", "right=2", "--weight", "tidy=1")
    assert "no judgement was named (--solved)" in error
    assert "right, tidy" in error
    (chunk,), _ = read(tmp_path / "log.jsonl")
    assert chunk.reward_B.tolist() == [2.5, 0.5]
    before = (tmp_path / "log.jsonl").read_bytes()
    for arguments, said in (
        ([tmp_path / "log.jsonl", "-o", tmp_path / "new.jsonl"], "It is a rollout log already"),
        ([trl, "-o", tmp_path / "log.jsonl", "--from", "trll"], "Did you mean 'trl'"),
        ([verl, "-o", tmp_path / "log.jsonl", "--weight", "acc=1"], "Weights are for TRL's tables"),
        ([trl, "-o", tmp_path / "log.jsonl", "--weight", "tidy=much"], "expected a number"),
        ([trl, "-o", tmp_path / "log.jsonl", "--weight", "tidy"], "expected NAME=VALUE"),
        ([trl, "-o", tmp_path / "log.csv"], "suffix .jsonl or .parquet"),
        ([verl, "-o", tmp_path / "verl.parquet"], "exists already"),
        ([trl, "-o", tmp_path / "log.jsonl", "--solved", "rights"], "Did you mean 'right'"),
    ):
        status, _, error = command(*arguments)
        assert (status, said in error) == (2, True), error
    assert (tmp_path / "log.jsonl").read_bytes() == before
