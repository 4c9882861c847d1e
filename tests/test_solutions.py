"""Worked solutions: of the built-in families, each right to the last step; and of files, found by name or within the answers."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage as tt
from tutelage.errors import TutelageError
from tutelage.study.config import make_run
from tutelage.tasks.loaders import load_tasks, pool_of, to_dataset
from tutelage.tasks.solutions import SOLVERS, from_answers, worked_solution

LEVELS: dict[str, list[dict[str, Any]]] = {"number_sorting": [{}]}


def levels() -> dict[str, list[dict[str, Any]]]:
    from tutelage.tasks.families import BUILTIN_LEVELS

    return LEVELS | BUILTIN_LEVELS


def holds(line: str) -> bool:
    """Whether a chain of sums and products is a chain of equal values."""
    values = [eval(re.sub(r"(?<=\d) / (?=\d)", " // ", side), {"__builtins__": {}}) for side in line.split(" = ")]
    return len(set(values)) == 1


@pytest.mark.lm
@pytest.mark.parametrize("family", sorted(SOLVERS))
def test_every_solution_is_right_and_short(family: str) -> None:
    """Judged correct by reasoning-gym's own scorer, of true steps, and in the built-in student's vocabulary."""
    pytest.importorskip("reasoning_gym")
    transformers = pytest.importorskip("transformers")
    from tutelage.students import builtin_path
    from tutelage.tasks.reasoning_gym import generate
    from tutelage.tasks.verifiers import resolve

    judge, tokenizer = resolve("reasoning_gym"), transformers.AutoTokenizer.from_pretrained(str(builtin_path()))

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), level=st.sampled_from(levels()[family]))
    def check(seed: int, level: dict[str, Any]) -> None:
        for row in islice(generate(family, level, seed, chunk=24), 24):
            solution = row["solution"]
            if not row["answer"]:  # reasoning-gym's gold for 0 in bases other than 2 and 16 is nothing at all
                assert solution is None
                continue
            assert solution is not None, row["question"]
            assert judge(solution, row).grade == 1
            *steps, last = solution.split("\n")
            assert last == f"<answer>{row['answer']}</answer>"
            assert "<answer>" not in "".join(steps)
            if family in ("chain_sum", "products", "gcd", "lcm", "base_conversion"):
                assert all(holds(step) for step in steps)
            ids = tokenizer(solution)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= 256

    check()


@pytest.mark.lm
def test_settings_of_a_users_own() -> None:
    """Three numbers, more bases, minus signs, a letter that never appears."""
    pytest.importorskip("reasoning_gym")
    from tutelage.tasks.reasoning_gym import generate

    own = {"gcd": {"min_numbers": 3, "max_numbers": 4}, "lcm": {"min_numbers": 3, "max_numbers": 3}, "chain_sum": {"allow_negation": True}}
    own |= {"base_conversion": {"max_base": 36, "min_value": 1}, "products": {"min_terms": 3, "max_terms": 4}}
    for family, level in own.items():
        assert all(row["solution"] is not None for row in islice(generate(family, level, 1), 100)), family


def entry(answer: Any, **metadata: Any) -> dict[str, Any]:
    return {"answer": answer, "metadata": metadata}


def test_hand_written_cases() -> None:
    assert worked_solution("gcd", entry("6", numbers=[18, 48])) == "48 = 2 * 18 + 12\n18 = 1 * 12 + 6\n12 = 2 * 6 + 0\n<answer>6</answer>"
    assert worked_solution("chain_sum", entry("-2", expression="27 - 38 + 9")) == "27 - 38 = -11\n-11 + 9 = -2\n<answer>-2</answer>"
    assert worked_solution("products", entry("6460", expression="68 * 95")) == (
        "68 * 90 = 6120\n68 * 5 = 340\n6120 + 340 = 6460\n<answer>6460</answer>"
    )
    assert worked_solution("count_bits", entry("5", number=117)) == "117 = 111 0101\n3 + 2 = 5\n<answer>5</answer>"
    base = {"source_base": 9, "target_base": 5, "source_repr": "31", "decimal_value": 28}
    assert worked_solution("base_conversion", entry("103", **base)) == (
        "3 * 9 + 1 = 28\n28 = 5 * 5 + 3\n5 = 1 * 5 + 0\n1 = 0 * 5 + 1\n<answer>103</answer>"
    )
    none = {"target_letter": "z", "span": ["a", "word"]}
    assert worked_solution("letter_counting", entry("0", **none)) == "<answer>0</answer>"
    numbers = {"original_numbers": ["2", "10", "2"], "direction": "descending"}
    assert (
        worked_solution("number_sorting", entry("['10', '2', '2']", **numbers))
        == "next 10\nnext 2, 2 times\n<answer>['10', '2', '2']</answer>"
    )


def test_no_solution_rather_than_a_wrong_one() -> None:
    assert worked_solution("maze", entry("3")) is None
    assert worked_solution("gcd", entry("5", numbers=[18, 48])) is None


@pytest.mark.lm
def test_the_pool_of_families() -> None:
    pytest.importorskip("reasoning_gym")
    pool = tt.TaskPool.from_reasoning_gym(["gcd", "maze"], tasks_per_arm=4, levels=1)
    solved = dict(zip(pool.columns["prompt"], pool.columns["solution"], strict=True))
    assert [solution is None for solution in solved.values()] == [False] * 4 + [True] * 4
    data = to_dataset(pool)
    assert data["solution"][0].endswith("</answer>")
    assert data["solution"][7] is None
    assert "solution" not in tt.TaskPool.from_reasoning_gym("maze", tasks_per_arm=2, levels=1).columns


GSM = "He sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
MATH = "We have $x^2 = 4$ and $x > 0$, hence $x = \\boxed{2}$."


def test_workings_within_answers() -> None:
    assert from_answers([GSM]) == ["He sold 48/2 = 24 clips in May.\nIn all 48+24 = 72."]
    assert from_answers([MATH]) == [MATH]
    assert from_answers(["72", "\\boxed{3}", "$\\boxed{4}$"]) is None
    assert from_answers([GSM] * 19 + ["#### 5"]) == [from_answers([GSM])[0]] * 19 + [None]
    assert from_answers([GSM] * 9 + ["5"]) is None
    assert from_answers([5, None]) is None


def test_columns_by_name() -> None:
    table = {"question": ["a?", "b?"], "answer": ["1", "2"], "rationale": ["because", None], "level": [1, 2]}
    pool = pool_of(table)
    assert list(pool.columns) == ["prompt", "answer", "solution", "level"]
    assert pool.columns["solution"] == ["because", None]
    assert pool_of({"prompt": ["a?"], "answer": ["1"], "solution": ["x"], "rationale": ["y"]}).columns["solution"] == ["x"]
    named = pool_of({"prompt": ["a?"], "answer": ["1"], "solution": ["x"], "hint": ["y"]}, solution="hint")
    assert (named.columns["solution"], named.columns["original_solution"]) == (["y"], ["x"])
    assert pool_of({"prompt": ["a?"], "answer": [GSM]}).columns["solution"] == from_answers([GSM])


def test_a_solution_column_that_is_the_answer() -> None:
    """MATH has no other answer than its worked solution: it is both; a bare answer called so is no working."""
    pool = pool_of({"problem": ["a?"], "solution": [MATH]})
    assert (pool.columns["answer"], pool.columns["solution"]) == ([MATH], [MATH])
    assert "solution" not in pool_of({"problem": ["a?"], "solution": ["2"]}).columns
    both = pool_of({"problem": ["a?"], "solution": ["2"]}, solution="solution")
    assert (both.columns["answer"], both.columns["solution"]) == (["2"], ["2"])


def test_what_is_no_text() -> None:
    table = {"prompt": ["a?", "b?"], "answer": ["1", "2"], "solution": [1, 2]}
    assert pool_of(table).columns["solution"] == [1, 2]  # some other column of that name
    with pytest.raises(TutelageError, match=r"column 'solution' is 1 in row 1 \(counted from 1\); expected text, or null"):
        pool_of(table, solution="solution")
    with pytest.raises(TutelageError, match=r"Unknown solution column 'working'. Did you mean 'workings'"):
        pool_of({**table, "workings": ["x", "y"]}, solution="working")
    with pytest.raises(TutelageError, match=r"column 'note' is None in row 1"):
        pool_of({**table, "note": [None, None]}, solution="note")


def test_files(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    gsm = write("gsm8k.jsonl", [{"question": f"{i} clips?", "answer": GSM} for i in range(16)])
    own = write("own.jsonl", [{"prompt": f"{i}?", "answer": "72", "working": "so"} for i in range(16)])
    alone = load_tasks(gsm)
    assert alone.verifier_spec == "numeric"
    assert set(alone.train.columns["solution"]) == {"He sold 48/2 = 24 clips in May.\nIn all 48+24 = 72."}
    assert set(load_tasks(own, solution="working").heldout.columns["solution"]) == {"so"}
    both = load_tasks([gsm, own])
    assert sum(text is None for text in both.train.columns["solution"]) == len(both.train) - sum(both.train.arms().arm_N == 0)
    with pytest.raises(TutelageError, match="solution= name columns of files"):
        load_tasks("quick", solution="working")
    assert make_run(None, {}, ["columns.solution=working"]).columns == {"solution": "working"}
