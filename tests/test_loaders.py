"""Files and tables to pools: what loads, what is refused and how the refusal reads, and the split into training and held-out tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.errors import TutelageError
from tutelage.outcomes import Kind
from tutelage.pools import TaskPool
from tutelage.tasks.loaders import (
    default_verifier,
    difficulty_bins,
    load_columns,
    load_tasks,
    pool_of,
    prompt_key,
    read_directory,
    read_jsonl,
    read_parquet,
    split_rows,
    to_dataset,
)

GSM8K = [
    {
        "question": "A robe takes 2 bolts of blue and half that of white. How many in all?",
        "answer": "2/2=<<2/2=1>>1\n2+1=<<2+1=3>>3\n#### 3",
    },
    {"question": "He bought a house for $80,000 and gained 150%. What is the profit?", "answer": "It rose by 120,000.\n#### 70,000"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int, **columns: Any) -> list[dict[str, Any]]:
    """`count` rows of distinct prompts; a callable column gets the row number."""
    extra = [{name: value(i) if callable(value) else value for name, value in columns.items()} for i in range(count)]
    return [{"prompt": f"1 + {i} =", "answer": str(1 + i), **more} for i, more in enumerate(extra)]


class Templated:
    chat_template = "{{ messages }}"


# ---------------------------------------------------------------- JSONL


def test_jsonl_becomes_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "\xc3\xa9", "n": 1}\n\n{"n": null, "prompt": "b"}\r\n')
    assert read_jsonl(path) == {"prompt": ["é", "b"], "n": [1, None]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["holds no tasks", "empty"]),
        (b"\n \n", ["holds no tasks"]),
        (b'{"a": 1}\n{"a": 1,}\n', ["line 2", "not valid JSON", "column 9"]),
        (b'{"a": 1}\n{"a": "cut o', ["line 2", "cut off"]),
        (b'[{"a": 1},\n{"a": 2}]\n', ["line 1", "JSON array", "one object per line"]),
        (b'[{"a": 1}]\n', ["line 1", "list", "JSON array"]),
        (b'{\n  "a": 1\n}\n', ["line 1", "indented JSON"]),
        (b"{'a': 1}\n", ["line 1", "json.dumps"]),
        (b'{"a": 1}\n7\n', ["line 2", "int", "expected a JSON object"]),
        (b'{"a": 1}\n\n"text"\n', ["line 3", "str"]),
        (b"{}\n", ["line 1", "an empty object"]),
        (b'{"a": 1}\n{"a": "\xe9"}\n', ["line 2", "not UTF-8", "0xe9", "position 8", "iconv"]),
        ('{"a": 1}\n'.encode("utf-16"), ["line 1", "not UTF-8"]),
        (b'{"a": 1, "b": 2}\n\n{"a": 1, "c": 2}\n', ["line 3", "line 1", "lacks 'b'", "has 'c' besides", "null"]),
        (b'{"a": 1, "a": 2}\n', ["line 1", "'a' occurs twice"]),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ["line 1", "cannot be read"]),
    ],
)
def test_bad_jsonl_names_file_line_and_cause(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TutelageError) as caught:
        read_jsonl(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sums(1))
    with pytest.raises(TutelageError, match=r"There is no file .*trian\.jsonl\. Did you mean .*train\.jsonl\?"):
        load_columns(tmp_path / "trian.jsonl")
    with pytest.raises(TutelageError, match=r"the directory .*nowhere does not exist"):
        load_tasks(str(tmp_path / "nowhere" / "a.jsonl"))
    with pytest.raises(TutelageError, match=r"suffix '\.csv'.*\.jsonl"):
        load_columns(write(tmp_path / "a.csv", []))
    with pytest.raises(TutelageError, match="is a directory"):
        read_jsonl(tmp_path)


# ---------------------------------------------------------------- pools of tables


def test_columns_are_found_by_name_and_others_kept() -> None:
    pool = pool_of({"problem": ["p", "q"], "solution": ["1", "2"], "expert_solution": ["x", "y"], "key": [7, 8], "id": [3, 4]})
    assert list(pool.columns) == ["prompt", "answer", "expert_solution", "id", "original_key"]
    assert pool.row(1) == {"key": prompt_key("q"), "prompt": "q", "answer": "2", "expert_solution": "y", "original_key": 8, "id": 4}
    assert len(pool.key_N[0]) == 32


def test_an_explicit_column_displaces_the_automatic_one() -> None:
    table = {"prompt": ["p"], "question": ["q"], "answer": ["1"], "solution": ["long"], "key": ["k"]}
    pool = pool_of(table, prompt="question", answer="solution", key="key")
    assert pool.row(0) == {"key": "k", "prompt": "q", "answer": "long", "original_prompt": "p", "original_answer": "1"}


def test_keys_depend_on_the_prompt_alone() -> None:
    one = pool_of(sums(5))
    other = pool_of([{**row, "answer": "?", "more": 1} for row in reversed(sums(9))])
    assert set(one.key_N) < set(other.key_N)
    assert pool_of({"feature": [0.5, 0.25]}).key_N.tolist() == [0, 1]
    chat = [{"role": "user", "content": "é"}]
    assert prompt_key(chat) == prompt_key([{"content": "é", "role": "user"}]) != prompt_key("é")


def test_arms_of_one_or_several_columns() -> None:
    table = {"prompt": list("abcd"), "level": [1.0, 10.0, 2.0, 2.0], "topic": ["x", "y", "x", "y"]}
    assert pool_of(table, arm="level").arms().names == ("1", "2", "10")
    assert pool_of(table, arm=["topic", "level"]).arms().names == ("x/1", "x/2", "y/2", "y/10")
    assert pool_of(table, arm={"mine": np.array([0, 0, 1, 1])}).arm_columns == ("mine",)
    assert pool_of({"prompt": ["a", "b"], "mixed": [1, "one"]}, arm="mixed").arms().names == ("1", "one")


def test_difficulty_by_column_and_by_length() -> None:
    table = {"prompt": ["a", "b"], "answer": ["four", "sixsix"], "hard": np.array([3, 1])}
    assert pool_of(table, difficulty="hard").difficulty_N.tolist() == [3, 1]
    assert pool_of(table, difficulty="length").difficulty_N.tolist() == [4, 6]
    assert pool_of({**table, "length": [9, 8]}, difficulty="length").difficulty_N.tolist() == [9, 8]


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        ({}, {}, ["holds no tasks"]),
        ([], {}, ["holds no tasks"]),
        ({"prompt": []}, {"source": "f.jsonl"}, ["f.jsonl holds no tasks"]),
        ({"prompt": ["a"]}, {"answer": "anwser"}, ["Unknown answer column 'anwser'", "answer=", "Known: prompt"]),
        ({"prompt": ["a"], "answer": ["b"]}, {"answer": "anwser"}, ["Did you mean 'answer'?", "Known: answer, prompt"]),
        ({"prompt": ["a"]}, {"arm": "topic", "source": "f"}, ["arm column of f", "'topic'"]),
        ({"prompt": ["a"]}, {"difficulty": "length"}, ["difficulty", "'length'"]),
        ({"prompt": ["a", "a"]}, {"source": "f"}, ["Duplicate keys", "rows 1 and 2 of f", "'a'", "key="]),
        ({"prompt": ["a", "b"], "id": [5, 5]}, {"key": "id"}, ["Duplicate task keys", "5"]),
        ({"prompt": ["a", "b"], "id": [5, None]}, {"key": "id"}, ["'id'", "None", "row 2"]),
        ({"prompt": ["a", " "]}, {}, ["row 2", "blank"]),
        ({"prompt": ["a", None]}, {}, ["row 2", "blank", "None"]),
        ({"prompt": ["a", 3]}, {}, ["row 2", "type int"]),
        ({"prompt": [["a"]]}, {}, ["not of chat messages"]),
        ({"input": ["a"], "instruction": ["b"]}, {"source": "f"}, ["f has the columns 'input' and 'instruction'", "prompt="]),
        ({"prompt": ["a", "b"], "t": ["x", None]}, {"arm": "t"}, ["'t'", "None", "row 2", "every task needs an arm"]),
        ({"prompt": ["a", "b"], "t": [1.0, float("nan")]}, {"arm": "t"}, ["'t'", "nan", "row 2"]),
        ({"prompt": ["a", "b"], "t": [["x"], ["y"]]}, {"arm": "t"}, ["'t'", "text or numbers"]),
        ({"prompt": ["a"], "d": ["Level 5"]}, {"difficulty": "d"}, ["'d'", "'Level 5'", "row 1", "arm="]),
        ({"prompt": ["a"], "d": [float("inf")]}, {"difficulty": "d"}, ["finite number"]),
        ({"prompt": ["a", "b"], "answer": ["1"]}, {}, ["equally long"]),
        ([{"prompt": "a"}, {"prompt": "b", "x": 1}], {}, ["Row 2", "row 1", "has 'x' besides"]),
        ([{"prompt": "a"}, "b"], {}, ["Row 2", "str"]),
        (3, {}, ["got int"]),
    ],
)
def test_bad_tables_say_what_is_wrong(table: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TutelageError) as caught:
        pool_of(table, **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- task sets of files


def test_gsm8k_rows_work_as_they_come(tmp_path: Path) -> None:
    rows = [{**row, "question": f"{row['question']} ({i})"} for i in range(20) for row in GSM8K]
    tasks = load_tasks(write(tmp_path / "gsm8k.jsonl", rows))
    assert (tasks.name, tasks.verifier_spec, tasks.train.arms().names) == ("gsm8k", "numeric", ("gsm8k",))
    assert len(tasks.train) + len(tasks.heldout) == 40
    task = tasks.train.row(0)
    assert tasks.verifier(task["answer"], task).kind == Kind.CORRECT
    assert tasks.verifier("#### 12345", task).kind == Kind.WRONG


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["3", "-2.5", "1,000", "$40", "3/4", "50%", "18 dollars", "So … #### 7"], "numeric"),
        ([1, 2.5], "numeric"),
        (["3", "Paris"], "exact"),
        (["A", "B"], "exact"),
        (["x^2+1", "2x"], "exact"),
        (["1, 2, 3", "1 2"], "exact"),
        (["1 May 2020", "3 July 1999"], "exact"),
        (["3"] * 19 + ["3 feet 2"], "numeric"),
        (["3"] * 18 + ["3 feet 2"] * 2, "exact"),
        (["3"] * 99 + ["none"], "exact"),
    ],
)
def test_the_default_verifier_follows_the_gold_answers(answers: list[Any], expected: str) -> None:
    assert default_verifier(answers) == expected


def test_the_split_survives_reordering_and_growth(tmp_path: Path) -> None:
    rows = sums(400)
    first = load_tasks(write(tmp_path / "a.jsonl", rows))
    grown = rows + sums(600)[400:]
    random.Random(0).shuffle(grown)
    second = load_tasks(write(tmp_path / "b.jsonl", grown))
    assert set(first.train.key_N) <= set(second.train.key_N)
    assert set(first.heldout.key_N) <= set(second.heldout.key_N)
    assert not set(second.train.key_N) & set(second.heldout.key_N)
    assert 0.08 < len(second.heldout) / 600 < 0.18


def test_every_arm_has_held_out_and_training_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sums(60, topic=lambda i: f"t{i // 2}"))
    tasks = load_tasks(path, arm="topic")
    assert tasks.train.arms().names == tasks.heldout.arms().names
    assert set(tasks.train.arms().size_A) == set(tasks.heldout.arms().size_A) == {1}
    assert load_tasks(path, arm="topic", heldout_share=0.999).train.arms().size_A.tolist() == [1] * 30


def test_an_arm_too_small_to_split_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sums(41, topic=lambda i: "lonely" if i == 40 else "big"))
    with pytest.raises(TutelageError, match="Arm 'lonely' has 1 tasks"):
        load_tasks(path, arm="topic")
    twice = [{"prompt": "same", "answer": "1", "id": 0}, {"prompt": "same", "answer": "1", "id": 1}]
    with pytest.raises(TutelageError, match="another prompt"):
        load_tasks(write(tmp_path / "b.jsonl", twice), key="id")


def test_a_cap_on_held_out_tasks_never_frees_them_for_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sums(400))
    free, capped = load_tasks(path), load_tasks(path, heldout_tasks=5)
    assert capped.train.key_N.tolist() == free.train.key_N.tolist()
    assert len(capped.heldout) == 5
    assert set(capped.heldout.key_N) < set(free.heldout.key_N)


def test_split_keeps_equal_prompts_together() -> None:
    hash_N = np.array([0.9, 0.9, 0.5, 0.5, 0.4])  # arm 0: rows 0, 2; arm 1: rows 1, 3, 4
    train_rows, heldout_rows = split_rows(hash_N, TaskPool(arm=[0, 1, 0, 1, 1]).arms(), 0.1)
    assert train_rows.tolist() == [0, 1]
    assert heldout_rows.tolist() == [2, 3, 4]  # row 3 follows row 2, whose prompt it repeats


def test_difficulty_cuts_a_file_into_arms(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", sums(400, hard=lambda i: i))
    tasks = load_tasks(path, difficulty="hard")
    names = tuple(f"difficulty {k}" for k in range(1, 5))
    assert tasks.train.arms().names == tasks.heldout.arms().names == names
    hardest = tasks.train.difficulty_N[tasks.train.arms().arm_N == 3]
    assert hardest.min() > tasks.train.difficulty_N[tasks.train.arms().arm_N == 2].max()


def test_difficulty_bins_share_ties_and_skip_nothing() -> None:
    assert difficulty_bins(np.array([1, 2, 3, 4.0])).tolist() == [f"difficulty {k}" for k in (1, 2, 3, 4)]
    assert difficulty_bins(np.array([5, 5, 5, 5.0])).tolist() == ["difficulty 1"] * 4
    assert difficulty_bins(np.array([1, 1, 1, 1, 1, 1, 1, 9.0])).tolist() == ["difficulty 1"] * 7 + ["difficulty 2"]


def test_several_files_are_arms_by_name(tmp_path: Path) -> None:
    one = write(tmp_path / "sums.jsonl", sums(40, source="here"))
    (tmp_path / "x").mkdir()
    two = write(tmp_path / "x" / "gsm.jsonl", [{"question": f"{i}?", "answer": "2", "level": 1} for i in range(30)])
    tasks = load_tasks([one, str(two)])
    assert tasks.name == "sums+gsm"
    assert tasks.train.arms().names == ("gsm", "sums")
    assert tasks.train.arm_columns == ("file",)
    row = tasks.train.row(int(tasks.train.arms().rows(np.array([0]), np.array([0]))[0]))
    assert (row["source"], row["level"], row["prompt"][-1]) == (None, 1, "?")
    same = write(tmp_path / "x" / "sums.jsonl", [{"question": f"{i}??", "answer": "2"} for i in range(30)])
    assert load_tasks([one, same]).train.arms().names == (f"{tmp_path.name}/sums", "x/sums")
    with pytest.raises(TutelageError, match=r"The arm in column 'level' is None"):
        load_tasks([one, two], arm="level")


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"text": "a"}], {}, ["no prompt column", "'text'", "prompt="]),
        ([{"prompt": "a", "gold": "1"}], {}, ["no answer column", "'gold'", "answer="]),
        ([{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": None}], {}, ["answer in row 2", "None"]),
        ([{"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "1"}], {}, ["Duplicate keys", "a.jsonl"]),
        (sums(3), {"heldout_share": 0.0}, ["heldout_share=0.0", "between 0 and 1"]),
        (sums(3), {"heldout_tasks": 0}, ["heldout_tasks=0"]),
        (sums(30), {"verifier": "numerc"}, ["numerc", "numeric"]),
        (sums(30), {"arm": "topics"}, ["arm column", "'topics'", "answer, prompt"]),
    ],
)
def test_bad_files_stop_before_anything_runs(tmp_path: Path, rows: list[Any], options: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(TutelageError) as caught:
        load_tasks(path, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_verifier_of_ones_own_needs_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_grader_of_haiku.py").write_text("def grade(completion, task):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path / "a.jsonl", [{"prompt": f"haiku {i}"} for i in range(20)])
    tasks = load_tasks(path, verifier="my_grader_of_haiku:grade")
    assert tasks.verifier("x", tasks.train.row(0)).grade == 0.5


def test_files_and_names_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match="cannot be mixed"):
        load_tasks(["gcd", str(tmp_path / "a.jsonl")])
    with pytest.raises(TutelageError, match="prompt= name columns of files"):
        load_tasks("builtin", prompt="question")


# ---------------------------------------------------------------- with the extra


@pytest.mark.lm
def test_parquet_reads_like_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = sums(40, level=lambda i: i % 3)
    folder = tmp_path / "split=train"  # not a partition
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    assert read_parquet(folder / "a.parquet") == read_jsonl(write(tmp_path / "a.jsonl", rows))
    assert load_tasks(folder / "a.parquet", arm="level").train.arms().names == ("0", "1", "2")
    (tmp_path / "cut.parquet").write_bytes((folder / "a.parquet").read_bytes()[:200])
    with pytest.raises(TutelageError, match=r"cut\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path / "cut.parquet")


@pytest.mark.lm
def test_a_dataset_stays_where_it_is(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(sums(50, level=lambda i: i % 2))
    pool = TaskPool.from_dataset(dataset, arm="level")
    assert type(pool.columns["prompt"]) is type(dataset["prompt"])  # not a list: values stay in Arrow
    assert pool.row(3) == {"key": prompt_key("1 + 3 ="), "prompt": "1 + 3 =", "answer": "4", "level": 1}
    dataset.save_to_disk(tmp_path / "saved")
    assert read_directory(tmp_path / "saved")["answer"][:] == dataset["answer"][:]
    tasks = load_tasks(str(tmp_path / "saved"), arm="level")
    assert (tasks.name, len(tasks.train) + len(tasks.heldout)) == ("saved", 50)
    assert not isinstance(tasks.train.columns["prompt"], list)


@pytest.mark.lm
def test_datasets_of_another_shape_are_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(sums(4))
    splits = datasets.DatasetDict({"train": dataset, "test": dataset})
    splits.save_to_disk(tmp_path / "both")
    with pytest.raises(TutelageError, match=r"splits train, test.*both/train"):
        load_tasks(tmp_path / "both")
    assert len(load_columns(tmp_path / "both" / "test")) == 4
    with pytest.raises(TutelageError, match="splits train, test"):
        pool_of(splits)
    with pytest.raises(TutelageError, match="streaming"):
        pool_of(dataset.to_iterable_dataset())
    write(tmp_path / "a.jsonl", sums(1))
    with pytest.raises(TutelageError, match=r"not a dataset directory.*a\.jsonl"):
        read_directory(tmp_path)


@pytest.mark.lm
def test_rows_of_the_pool_are_rows_of_the_dataset() -> None:
    pytest.importorskip("datasets")
    pool = pool_of([{**row, "messages": "m", "tools": None} for row in sums(5)])
    plain, chat = to_dataset(pool), to_dataset(pool, Templated())
    assert plain[2] == {"prompt": "1 + 2 =\n", "key": pool.key_N[2], "answer": "3", "task_messages": "m", "task_tools": None}
    assert chat["prompt"][4] == [{"role": "user", "content": "1 + 4 ="}]
    assert chat["key"][:] == pool.key_N.tolist()


@pytest.mark.lm
def test_chat_prompts_need_a_template_to_join_them() -> None:
    pytest.importorskip("datasets")
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}
    pool = pool_of({"prompt": [[user], [system, user]]})
    assert to_dataset(pool, Templated())["prompt"][1] == [system, user]
    assert to_dataset(pool_of({"prompt": [[user]]}))["prompt"][:] == ["hi\n"]
    with pytest.raises(TutelageError, match=r"2 chat messages.*no chat template"):
        to_dataset(pool)


@pytest.mark.lm
def test_what_a_dataset_cannot_hold_is_named() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(TutelageError, match="cannot hold the columns 'mixed'"):
        to_dataset(pool_of({"prompt": ["a", "b"], "mixed": [1, "b"], "fine": [1, 2.5]}))
    with pytest.raises(TutelageError, match="no column 'prompt'"):
        to_dataset(TaskPool(arm=[0, 1]))


def test_a_template_goes_around_every_prompt() -> None:
    pool = pool_of({"prompt": ["1 + 1 =", [{"role": "user", "content": "2 + 2 ="}]], "answer": ["2", "4"]})
    boxed = "{prompt}\nPut the answer within \\boxed{}."
    assert to_dataset(pool, template="Question: {prompt}\nAnswer:")["prompt"][:] == [
        "Question: 1 + 1 =\nAnswer:",
        "Question: 2 + 2 =\nAnswer:",
    ]

    class Chat:
        chat_template = "{{ messages }}"

    prompts = to_dataset(pool, Chat(), template=boxed)["prompt"][:]
    assert [messages[-1]["content"] for messages in prompts] == [boxed.replace("{prompt}", text) for text in ("1 + 1 =", "2 + 2 =")]
    assert pool.columns["prompt"][1] == [{"role": "user", "content": "2 + 2 ="}]  # the pool keeps its own
    with pytest.raises(TutelageError, match="no place for the task"):
        to_dataset(pool, template="Question:")
    parts = pool_of({"prompt": [[{"role": "user", "content": [{"type": "text", "text": "x"}]}]]})
    with pytest.raises(TutelageError, match="only text has a place"):
        to_dataset(parts, Chat(), template=boxed)
