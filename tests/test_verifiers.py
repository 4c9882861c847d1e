"""Verifiers: tables of what people and models write, the verdicts of broken verifiers, and the guards around evaluating scorers."""

from __future__ import annotations

import json
import math
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.registry import verifiers
from tutelage.tasks.families import BUILTIN_LEVELS
from tutelage.tasks.verifiers import Judgement, Kind, final_answer, judge_all, refused, resolve

W, C, R, M = Kind.WRONG, Kind.CORRECT, Kind.REFUSED, Kind.MALFORMED


def test_kind_codes_are_the_column_codes() -> None:
    assert [int(kind) for kind in (W, C, R, M)] == [0, 1, 2, 3]


def test_built_in_verifiers_are_registered() -> None:
    assert {"exact", "numeric", "choice", "math", "reasoning_gym"} <= set(verifiers.names())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She sells 9 eggs.\n#### 18", "18"),
        ("####42", "42"),
        ("#### $1,250.", "$1,250"),
        ("The answer is 12.", "12"),
        ("The final answer is: **Paris**.", "Paris"),
        ("Answer: 7", "7"),
        ("**Answer:** 7 apples", "7 apples"),
        ("**Final Answer**: 7", "7"),
        ("### Final answer\n\n42", "42"),
        ("Answer:\n\n42", "42"),
        ("The answer to the question is 5", "5"),
        ("the correct answer would be (B)", "(B)"),
        ("So the answer is therefore 9.", "9"),
        (r"Thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"$\boxed{\text{no solution}}$", "no solution"),
        (r"The answer is $\boxed{5}$.", "5"),
        (r"First \boxed{3}, no: \boxed{4}", "4"),
        (r"\boxed{3}. Wait. The answer is 4.", "4"),
        ("The answer is 3. Wait.\n#### 4", "4"),
        ("<think>The answer is 3.</think>It is 4", "It is 4"),
        ("the template opened the thought</think> 4 ", "4"),
        ("<think>never closed, the answer is 3", ""),
        ("<answer> 12 </answer>", "12"),
        ("<answer>\n1 2\n3 4\n</answer> done", "1 2\n3 4"),
        ("<answer>12", "12"),
        ("<answer>5</answer> or <answer>", "5"),
        ("<answer>" * 3 + "5</answer>", "5"),
        (r"Answer: 3 <answer>\boxed{12}</answer>", "12"),
        ("######\n#.@.#\n######", "######\n#.@.#\n######"),
        (r"an unclosed \boxed{4", r"an unclosed \boxed{4"),
        ("  just text ", "just text"),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know",
        "I do not know the answer to this question.",
        "I'm sorry, but I can't help with that.",
        "Sorry, I cannot assist with this request.",
        "I am unable to determine the number of apples.",
        "I'm not sure.",
        "I am not certain about this.",
        "Unable to determine.",
        "It is impossible to determine the price from the information given.",
        "The answer cannot be determined.",
        "There is not enough information to say.",
        "Insufficient data.",
        "As an AI language model, I cannot form opinions.",
        "I must decline to answer this.",
        "I have no idea how many eggs there are.",
        "I won't answer that.",
        "Answer: unknown",
        "Answer: I don't know",
        "The answer is: it cannot be determined",
        r"\boxed{\text{unknown}}",
        "<answer>I don't know</answer>",
        "N/A",
        "There are 3 unknowns and 2 equations.\nI cannot solve this.",
        "I'm unable to answer that. Perhaps a librarian could.",
        "<think>maybe 12</think>I don't know.",
    ],
)
def test_refusals(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "I don't know the exact count yet, so let x be that count. Then x = 5.",
        "I'm not sure, but I think it is 12.",
        "I'm not sure. Answer: 12",
        "I cannot determine this at a glance. Let's try: 3 + 5 = 8.",
        "We are told nothing about the fox.\nI don't know if that matters.\nSo the fox runs 5 miles.",
        "It is not known who carved it; the answer is Phidias",
        "He said: 'I can't swim', and stayed ashore with 4 friends.",
        "She does not know the number, which is 7.",
        "They cannot all sit down, so 3 stand.",
        "You cannot divide by zero, hence x = 2.",
        "The unknown is x = 4.",
        "<think>I don't know.</think>It is 5.",
        "Answer: The unknown soldier",
        "No, he refused.",
    ],
)
def test_answers_that_are_no_refusals(text: str) -> None:
    assert not refused(text)


EXACT = [
    ("Paris", "Paris", C),
    ("  paris\n", "Paris", C),
    ("The answer is Paris.", "Paris", C),
    ("The answer is Paris. It lies on the Seine.", "Paris", C),
    ("Answer: **Paris**", "Paris", C),
    ("<answer>Paris</answer>", "Paris", C),
    ("<think>Lyon? No.</think>Paris.", "Paris", C),
    (r"\boxed{\text{Paris}}", "Paris", C),
    ("New   York\nCity", "New York City", C),
    ("New York", "New York City", W),
    ("I believe it is Paris", "Paris", W),
    ("Lyon", "Paris", W),
    ("The answer is Dr. Who", "Dr. Who", C),
    ('"Paris"', "Paris", C),
    ("1 2\n3 4", "1 2\n3 4", C),
    ("42", "He has 6 * 7.\n#### 42", C),
    ("I don't know", "Paris", R),
    ("I don't know", "I don't know", C),
    ("cannot be determined", "Cannot be determined", C),
    ("", "Paris", M),
    (" \n", "Paris", M),
    ("<think>Paris, surely", "Paris", M),
    ("<answer></answer>", "Paris", M),
]


@pytest.mark.parametrize(("completion", "gold", "kind"), EXACT)
def test_exact(completion: str, gold: str, kind: Kind) -> None:
    assert resolve("exact")(completion, {"answer": gold}) == Judgement(kind, float(kind == C))


def test_exact_can_mind_case() -> None:
    verify = resolve("exact", case_sensitive=True)
    assert verify("NaCl", {"answer": "NaCl"}).kind == C
    assert verify("nacl", {"answer": "NaCl"}).kind == W


NUMERIC = [
    ("42", "42", C),
    ("So she makes $18 every day.", "16 - 3 - 4 = 9 eggs.\n#### 18", C),
    ("#### 18", "#### 18", C),
    ("5 + 13 = 18 dollars, up from 16 in 3 weeks.\n#### 18", "#### 18", C),
    ("The total is 1,234,567.", "1234567", C),
    ("$1,250.00", "1250", C),
    ("It cost \\$12.50", "12.5", C),
    (r"\boxed{1{,}250}", "1250", C),
    ("1\u202f250 km", "1250", C),
    (r"\$1,\!250", "1250", C),
    ("The answer is 1/2.", "0.5", C),
    ("2 1/2 cups", "2.5", C),
    ("2½ cups", "2.5", C),
    (r"\boxed{2\frac{1}{2}}", "2.5", C),
    (r"\boxed{\dfrac{-3}{4}}", "-0.75", C),
    (r"$-\frac34$", "-0.75", C),
    ("3e8 m/s", "300000000", C),
    (r"about $3 \times 10^{8}$", "3e8", C),
    ("1.5*10^-3", "0.0015", C),
    ("50%", "50", C),
    ("50%", "0.5", C),
    (r"50\%", "50%", C),
    ("0.5%", "50%", W),
    ("The house is worth $1.5 million.", "1500000", C),
    ("2 million", "2", C),
    ("-7", "-7", C),
    ("−7", "-7", C),
    ("-$7", "-7", C),
    ("The years 2019-2021", "2021", C),
    ("7 - 9", "9", C),
    ("The answer is x = 5, since 2 + 3 is 5.", "5", C),
    ("The answer is 5 because 2 and 3 make 5 and 6 would be too many.", "5", C),
    ("Answer: 6 * 7 = 42", "42", C),
    ("**Final Answer**\n\nThe total is $42.", "42", C),
    ("1. Add 2 and 3.\n2. That gives 5.", "5", C),
    ("<think>maybe 7</think>The answer is 5", "5", C),
    ("I'm not sure, but I think it is 12.", "12", C),
    ("042", "42", C),
    ("42.0", "42", C),
    ("41", "42", W),
    ("0.33", "1/3", W),
    ("1000000000001", "1000000000000", W),
    ("0.30000000000000004", "0.3", W),
    ("I cannot determine this: there are 3 unknowns and 2 equations.", "2", R),
    ("I don't know", "42", R),
    ("", "42", M),
    ("forty-two", "42", M),
    ("The answer is twelve.", "12", M),
    ("1/0", "42", M),
    ("1e999999999999", "42", M),
    ("9" * 5000, "42", M),
    ("<think>42", "42", M),
]


@pytest.mark.parametrize(("completion", "gold", "kind"), NUMERIC)
def test_numeric(completion: str, gold: str, kind: Kind) -> None:
    assert resolve("numeric")(completion, {"answer": gold}) == Judgement(kind, float(kind == C))


def test_numeric_gold_may_be_a_number_and_tolerances_widen() -> None:
    assert resolve("numeric")("42", {"answer": 42}).kind == C
    assert resolve("numeric", rel_tol=0.01)("0.333", {"answer": "1/3"}).kind == C
    assert resolve("numeric", rel_tol=0.001)("0.33", {"answer": "1/3"}).kind == W
    assert resolve("numeric", abs_tol=0.5)("42.5", {"answer": "42"}).kind == C
    assert resolve("numeric", abs_tol=0.5)("42.51", {"answer": "42"}).kind == W
    assert resolve("numeric", rel_tol=1e-9)("0.30000000000000004", {"answer": "0.3"}).kind == C


GSM8K = [
    ("Mia picks 4 baskets of 6 plums. How many plums?", "She picks 4 * 6 = <<4*6=24>>24 plums.\n#### 24"),
    ("A bike costs $1,400 and drops by $150. What does it cost?", "1400 - 150 = <<1400-150=1250>>1250\n#### 1,250"),
    ("A tank loses 3 litres an hour for 5 hours. By how much does it change?", "3 * 5 = <<3*5=15>>15, a loss.\n#### -15"),
    ("Half of a 5 km path is paved. How many km?", "5 / 2 = <<5/2=2.5>>2.5\n#### 2.5"),
    ("Of 40 seats 30 are taken. What percentage?", "30 / 40 = <<30/40=.75>>.75, or 75 percent.\n#### 75"),
]


def test_gsm8k_rows_work_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GSM8K))
    tasks_N = [json.loads(line) for line in path.read_text().splitlines()]
    said = ["24 plums", "It costs $1,250.", "The answer is -15 litres", r"\boxed{2\frac{1}{2}}", "75%"]
    completions_NG = [[task["answer"], text, "#### 1", "I don't know."] for task, text in zip(tasks_N, said, strict=True)]
    kind_NG, grade_NG = judge_all(resolve("numeric"), completions_NG, tasks_N)
    assert kind_NG.dtype == np.int8
    assert grade_NG.dtype == np.float64
    np.testing.assert_array_equal(kind_NG, [[C, C, W, R]] * 5)
    np.testing.assert_array_equal(grade_NG, [[1, 1, 0, 0]] * 5)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite)
def test_numeric_reads_back_any_float_as_printed(x: float) -> None:
    verify = resolve("numeric")
    assert verify(repr(x), {"answer": repr(x)}).kind == C
    assert verify(f"The answer is {x!r}.", {"answer": f"#### {x!r}"}).kind == C


@given(
    st.integers(-(10**15), 10**15),
    st.sampled_from(["{:d}", "{:,d}", "${:,d}", "{:d}.0", "#### {:,d}", r"\boxed{{{:d}}}", "Answer: {:d} apples"]),
)
def test_numeric_reads_back_any_integer_in_any_dress(n: int, dress: str) -> None:
    verify = resolve("numeric")
    assert verify(dress.format(n), {"answer": str(n)}).kind == C
    assert verify(dress.format(n), {"answer": str(n + 1)}).kind == W


@given(st.fractions(max_denominator=1000))
def test_numeric_reads_back_any_fraction(q: Fraction) -> None:
    written = f"{q.numerator}/{q.denominator}"
    assert resolve("numeric")(written, {"answer": rf"\frac{{{q.numerator}}}{{{q.denominator}}}"}).kind == C


CITIES = {"question": "What is the capital of France?\n(A) Lyon\n(B) Paris\n(C) Nice\n(D) It cannot be determined", "answer": "B"}
CHOICE = [
    ("B", C),
    ("(B)", C),
    ("b", C),
    ("b)", C),
    ("B.", C),
    ("**B**", C),
    ("B) Paris", C),
    ("b) Paris", C),
    ("Paris", C),
    ("paris.", C),
    ("The answer is B.", C),
    ("The answer is (B) Paris.", C),
    ("The correct answer is B because it is the seat of government.", C),
    ("Answer: B", C),
    ("Answer: Paris", C),
    (r"\boxed{B}", C),
    (r"\boxed{\text{B}}", C),
    ("Option B", C),
    ("I would go with option B here.", C),
    ("Neither (A) nor (C) fits, so I choose (B).", C),
    ("Lyon is large, yet **(B)**", C),
    ("It must be Paris, I am confident.", C),
    ("<think>A? C?</think>B", C),
    ("<answer>B</answer>", C),
    ("A", W),
    ("The answer is A.", W),
    ("Lyon", W),
    ("C) Nice", W),
    ("D", W),
    ("It cannot be determined", W),
    ("The answer is (D): it cannot be determined.", W),
    ("A or B", M),
    ("The answer is A, B", M),
    ("(A) and (B)", M),
    ("A dog is a fine animal", M),
    ("Either Lyon or Paris", M),
    ("I think so", M),
    ("So the correct choice is B.", C),
    ("It's B", C),
    ("Choose B", C),
    ("A. Lyon is smaller.\nC. Nice is on the coast.\nSo B.", C),
    ("(B) is the capital, as (A) and (C) are not.", C),
    ("B\n\nExplanation: (A) is smaller.", C),
    ("I'm not sure, but A", W),
    ("E", M),
    ("Marseille", M),
    ("", M),
]


@pytest.mark.parametrize(("completion", "kind"), CHOICE)
def test_choice(completion: str, kind: Kind) -> None:
    assert resolve("choice")(completion, CITIES) == Judgement(kind, float(kind == C))


@pytest.mark.parametrize(
    ("task", "completion", "kind"),
    [
        ({"answer": 1, "choices": ["red", "blue"]}, "B", C),
        ({"answer": 1, "choices": ["red", "blue"]}, "The answer is blue.", C),
        ({"answer": "blue", "choices": ["red", "blue"]}, "B", C),
        ({"answer": "(B)", "choices": ["(A) red", "(B) blue"]}, "blue", C),
        ({"answer": "B", "options": {"A": "red", "B": "blue"}}, "Blue", C),
        ({"answer": "2", "choices": {"label": ["1", "2"], "text": ["red", "blue"]}}, "2", C),
        ({"answer": "2", "choices": {"label": ["1", "2"], "text": ["red", "blue"]}}, "blue", C),
        ({"answer": "2", "choices": {"label": ["1", "2"], "text": ["red", "blue"]}}, "1", W),
        ({"answer": "B", "choices": ["red", "blue"]}, "C", M),
        ({"answer": "C"}, "C", C),
        ({"answer": "C"}, "Z", M),
        ({"answer": "C"}, "I don't know", R),
        ({"answer": "A", "prompt": [{"role": "user", "content": "Which?\nA. cat\nB. dog"}]}, "cat", C),
        ({"answer": "B", "choices": ["1", "12"]}, "12", C),
        ({"answer": "A", "choices": ["12", "1"]}, "it is 12", C),
    ],
)
def test_choice_finds_the_options(task: dict, completion: str, kind: Kind) -> None:
    assert resolve("choice")(completion, task).kind == kind


MATH = [
    (r"\boxed{\frac{1}{2}}", "0.5", C),
    ("1/2", r"\frac{1}{2}", C),
    (r"The answer is $\frac{2}{4}$.", r"$\frac{1}{2}$", C),
    ("#### 72", "#### 72", C),
    ("So the total is 72.", "72", C),
    (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", C),
    ("x^2 + 2x + 1", "(x+1)^2", C),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", C),
    ("Answer: sqrt(8)", r"2\sqrt{2}", C),
    (r"\boxed{[0, 1)}", "[0,1)", C),
    (r"\boxed{(0, 1)}", "[0,1)", W),
    (r"\boxed{\{2, 1\}}", r"\{1, 2\}", C),
    (r"\boxed{x = 5}", "5", C),
    (r"\boxed{\pi/2}", r"\frac{\pi}{2}", C),
    (r"\boxed{\text{no solution}}", "no solution", C),
    ("The answer is $18.", "18", C),
    (r"\boxed{1,234}", "1234", C),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", C),
    (r"The answer is $\dfrac{2\pi}{3}$.", "2pi/3", C),
    (r"\boxed{\sin x}", "sin(x)", C),
    (r"\boxed{\frac{1}{3}}", "0.5", W),
    ("2*x+1", "2", W),
    (r"\boxed{x+1}", "x-1", W),
    ("I cannot determine x.", "5", R),
    ("", "5", M),
    ("What a lovely day", "5", M),
    ("<think>5", "5", M),
]


@pytest.mark.lm
@pytest.mark.parametrize(("completion", "gold", "kind"), MATH)
def test_math(completion: str, gold: str, kind: Kind) -> None:
    assert resolve("math")(completion, {"answer": gold}) == Judgement(kind, float(kind == C))


@pytest.mark.lm
def test_math_works_outside_the_main_thread() -> None:
    found: list[Judgement] = []
    verify = resolve("math")
    threads = [threading.Thread(target=lambda: found.append(verify(r"\boxed{\frac{2}{4}}", {"answer": "0.5"}))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Judgement(C, 1.0)] * 3


@pytest.mark.lm
@pytest.mark.parametrize("tower", [r"\boxed{10^{10^{10}}}", r"\boxed{9^{9^{9^{9}}}}"])
def test_an_expression_that_stalls_is_wrong_and_the_next_is_judged(tower: str) -> None:
    verify = resolve("math", timeout=3.0)
    verify("1/2", {"answer": "0.5"})  # the library is imported
    assert verify(tower, {"answer": "5"}) == Judgement(W, 0.0)
    assert verify(r"\boxed{5}", {"answer": "5"}).kind == C
    assert verify("2+3", {"answer": "5"}).kind == C


@pytest.mark.lm
def test_a_gold_expression_that_stalls_is_the_tasks_fault() -> None:
    with pytest.raises(TutelageError, match="gold answer"):
        judge_all(resolve("math", timeout=3.0), [["5"]], [{"key": 3, "answer": "10^{10^{10}}"}])


@pytest.mark.lm
def test_a_gold_answer_beyond_the_grammar_is_compared_as_text() -> None:
    assert resolve("math")(r"\boxed{???}", {"answer": "???"}).kind == C
    assert resolve("math")(r"\boxed{5}", {"answer": "???"}).kind == W


def entry_of(family: str, **level: object) -> dict[str, str]:
    import reasoning_gym

    entry = reasoning_gym.create_dataset(family, seed=11, size=3, **level)[1]
    return {"question": entry["question"], "answer": str(entry["answer"]), "entry": json.dumps(entry, default=str)}


OTHER_FAMILIES = [
    "basic_arithmetic",
    "caesar_cipher",
    "calendar_arithmetic",
    "countdown",
    "fraction_simplification",
    "maze",
    "n_queens",
    "number_sorting",
    "polynomial_multiplication",
    "prime_factorization",
    "rearc",
    "simple_equations",
    "simple_integration",
    "spiral_matrix",
    "syllogism",
    "tower_of_hanoi",
    "word_sorting",
]


@pytest.mark.lm
@pytest.mark.parametrize(("family", "level"), [(f, level) for f, levels in BUILTIN_LEVELS.items() for level in levels])
def test_reasoning_gym_gold_is_correct_on_every_built_in_level(family: str, level: dict) -> None:
    task, verify = entry_of(family, **level), resolve("reasoning_gym")
    assert verify(task["answer"], task) == Judgement(C, 1.0)
    assert verify(f"<think>hm</think>I get\n<answer>{task['answer']}</answer>\nwhich is right.", task) == Judgement(C, 1.0)


@pytest.mark.lm
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_reasoning_gym_gold_is_correct_in_other_families(family: str) -> None:
    task, verify = entry_of(family), resolve("reasoning_gym")
    assert verify(f"<answer>{task['answer']}</answer>", task) == Judgement(C, 1.0)
    assert verify("I don't know.", task) == Judgement(R, 0.0)
    assert verify("  ", task) == Judgement(M, 0.0)
    assert verify("<answer> </answer>", task) == Judgement(M, 0.0)


def by_hand(family: str, answer: str, **metadata: object) -> dict[str, object]:
    return {"entry": {"question": "", "answer": answer, "metadata": {"source_dataset": family, **metadata}}}


SUM = by_hand("chain_sum", "12")
DOWN = by_hand("countdown", "4*6", numbers=[4, 6], target=24)
SCORES = [
    (SUM, "12", C, 1.0),
    (SUM, "+12.0", C, 1.0),
    (SUM, "<answer>12</answer> and <answer>12</answer>", C, 1.0),
    (SUM, "13", W, 0.0),
    (SUM, "12 or 13", W, 2 / 8),  # the gold text inside a longer answer: len("12") / len("12 or 13")
    (SUM, "I cannot compute this.", R, 0.0),
    (SUM, "", M, 0.0),
    (by_hand("gcd", "4"), "4", C, 1.0),
    (by_hand("spell_backward", "olleh"), "olleh", C, 1.0),
    (by_hand("spell_backward", "olleh"), "<think>hello reversed</think>olleh", C, 1.0),
    (DOWN, "6*4", C, 1.0),
    (DOWN, "6+4", W, 0.05),  # paid for using the right numbers
    (DOWN, "1+1", W, 0.05),
    (DOWN, "???", R, 0.0),
    (DOWN, "twenty-four", W, 0.01),  # paid for trying
    (by_hand("prime_factorization", "2 × 3", number=6), "not numbers", M, 0.0),  # the scorer raises on it
    (by_hand("spiral_matrix", "1 2 3"), "1 2 3", C, 1.0),
    (by_hand("spiral_matrix", "1 2 3"), "[1, 2, 3]", W, 0.1),
]


@pytest.mark.lm
@pytest.mark.parametrize(("task", "completion", "kind", "grade"), SCORES)
def test_reasoning_gym_scores(task: dict, completion: str, kind: Kind, grade: float) -> None:
    judgement = resolve("reasoning_gym")(completion, task)
    assert judgement.kind == kind
    assert judgement.grade == pytest.approx(grade)


@pytest.mark.lm
@pytest.mark.parametrize(
    ("family", "attack"),
    [
        ("spiral_matrix", "open({path!r}, 'w').close() or [1, 2, 3]"),
        ("spiral_matrix", "[open #\n({path!r}, 'w')]"),
        ("string_insertion", "[f'{{open({path!r}, chr(119))}}']"),
        ("n_queens", "(open)({path!r}, 'w')"),
        ("countdown", "open({path!r}, 'w')"),
        ("puzzle24", "open({path!r}, 'w')"),
        ("countdown", "(lambda: exec(chr(111)))()"),
        ("simple_integration", "sqrt(\"open({path!r}, 'w')\")"),
        ("polynomial_multiplication", "ｏｐｅｎ({path!r}, 'w')"),
    ],
)
def test_no_completion_runs_code(tmp_path: Path, family: str, attack: str) -> None:
    path = tmp_path / "written"
    answer = attack.format(path=str(path))
    assert resolve("reasoning_gym")(answer, entry_of(family)) == Judgement(M, 0.0)
    assert not path.exists()


@pytest.mark.lm
def test_a_scorer_that_stalls_costs_its_timeout_alone() -> None:
    verify = resolve("reasoning_gym", timeout=3.0)
    assert verify("6*4", DOWN).kind == C
    assert verify("9**9**9**9", DOWN) == Judgement(W, 0.0)
    assert verify("6*4", DOWN).kind == C


@pytest.mark.lm
def test_reasoning_gym_tasks_at_fault_raise() -> None:
    verify = resolve("reasoning_gym")
    with pytest.raises(TutelageError, match="needs the column 'entry'"):
        verify("12", {"answer": "12"})
    with pytest.raises(TutelageError, match="must hold a reasoning-gym record"):
        verify("12", {"entry": "{broken"})
    with pytest.raises(TutelageError, match=r"Did you mean 'chain_sum'"):
        verify("12", by_hand("chain_sums", "12"))
    with pytest.raises(TutelageError, match="every non-empty answer"):
        verify("True", by_hand("game_of_life_halting", "True"))
    with pytest.raises(TutelageError, match=r"task 5.*KeyError: 'result'"):  # the entry, not the answer, is at fault
        judge_all(verify, [["2i"]], [by_hand("complex_arithmetic", "2i") | {"key": 5}])
    assert verify("12", {"entry": {"answer": "12", "metadata": {}}, "family": "chain_sum"}).kind == C


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_users_function_from_the_current_directory(in_directory: Path) -> None:
    (in_directory / "own_rewards.py").write_text(
        "from tutelage.tasks.verifiers import Judgement, Kind\n"
        "def as_bool(completion, task): return completion == task['answer']\n"
        "def as_float(completion, task, *, most=1.0): return most * (completion == task['answer'])\n"
        "def as_judgement(completion, task): return Judgement(Kind.MALFORMED, 0.25)\n"
        "def as_text(completion, task): return 'good'\n"
        "def nan(completion, task): return float('nan')\n"
        "def above(completion, task): return 1.5\n"
        "def raises(completion, task): return task['missing']\n"
        "def no_task(completion): return True\n"
        "constant = 3\n"
    )
    task = {"key": 7, "answer": "yes"}
    assert resolve("own_rewards:as_bool")("yes", task) == Judgement(C, 1.0)
    assert resolve("own_rewards:as_bool")("no", task) == Judgement(W, 0.0)
    assert resolve("own_rewards:as_bool")("I don't know.", task) == Judgement(R, 0.0)
    assert resolve("own_rewards:as_bool")("", task) == Judgement(M, 0.0)
    assert resolve("own_rewards:as_float")("yes", task) == Judgement(C, 1.0)
    assert resolve("own_rewards:as_float", most=0.5)("yes", task) == Judgement(W, 0.5)
    assert resolve("own_rewards:as_judgement")("yes", task) == Judgement(M, 0.25)
    for name, message in [("as_text", "'good' of type str"), ("nan", "nan"), ("above", r"1\.5"), ("raises", "KeyError: 'missing'")]:
        with pytest.raises(TutelageError, match=message) as caught:
            judge_all(resolve(f"own_rewards:{name}"), [["yes"]], [task])
        assert f"own_rewards:{name} failed on task 7" in str(caught.value)
    with pytest.raises(TutelageError, match=r"cannot be called with \(completion, task\)"):
        resolve("own_rewards:no_task")
    with pytest.raises(TutelageError, match=r"cannot be called with .*least=1"):
        resolve("own_rewards:as_float", least=1)
    with pytest.raises(TutelageError, match=r"Did you mean 'as_bool'"):
        resolve("own_rewards:as_boo")
    with pytest.raises(TutelageError, match="is a int, not a function"):
        resolve("own_rewards:constant")


def test_modules_that_are_missing_or_broken(in_directory: Path) -> None:
    (in_directory / "needs_more.py").write_text("import not_there_at_all\n")
    (in_directory / "breaks.py").write_text("1 / 0\n")
    with pytest.raises(TutelageError, match="no module 'nowhere'"):
        resolve("nowhere:grade")
    with pytest.raises(TutelageError, match=r"no module 'nowhere\.deep'"):
        resolve("nowhere.deep:grade")
    with pytest.raises(TutelageError, match=r"needs .*'not_there_at_all'"):
        resolve("needs_more:grade")
    with pytest.raises(TutelageError, match="ZeroDivisionError"):
        resolve("breaks:grade")
    for spec in (":grade", "module:"):
        with pytest.raises(TutelageError, match="module:function"):
            resolve(spec)


def test_unknown_names_and_settings_name_the_nearest() -> None:
    with pytest.raises(TutelageError, match=r"Did you mean 'numeric'\?.*module:function"):
        resolve("numerik")
    with pytest.raises(TutelageError, match="Did you mean 'rel_tol'"):
        resolve("numeric", rel_tolerance=0.1)
    with pytest.raises(TutelageError, match="rel_tol"):
        resolve("numeric", rel_tol=-1.0)
    with pytest.raises(TutelageError, match="between 2 and 26"):
        resolve("choice", options=1)


def test_choice_names_what_is_wrong_with_the_options() -> None:
    with pytest.raises(TutelageError, match="'green' is none of the options: A: red, B: blue"):
        resolve("choice")("A", {"answer": "green", "choices": ["red", "blue"]})
    with pytest.raises(TutelageError, match="up to 26 options"):
        resolve("choice")("A", {"answer": "A", "choices": list("abc") * 9})


def test_judge_all_shapes() -> None:
    kind_NG, grade_NG = judge_all(resolve("exact"), [["a", "b", ""], ["b", "b", "I don't know."]], [{"answer": "a"}, {"answer": "b"}])
    np.testing.assert_array_equal(kind_NG, [[C, W, M], [C, C, R]])
    np.testing.assert_array_equal(grade_NG, [[1, 0, 0], [1, 1, 0]])
    assert judge_all(resolve("exact"), [], [])[0].shape == (0, 0)
    assert judge_all(resolve("exact"), [[], []], [{"answer": "a"}] * 2)[1].shape == (2, 0)
    with pytest.raises(TutelageError, match="same number of attempts"):
        judge_all(resolve("exact"), [["a"], ["a", "b"]], [{"answer": "a"}] * 2)
    with pytest.raises(TutelageError, match="1 tasks for 2 tasks"):
        judge_all(resolve("exact"), [["a"]], [{"answer": "a"}] * 2)
    with pytest.raises(TutelageError, match="must be text"):
        judge_all(resolve("exact"), [[[{"role": "assistant", "content": "a"}]]], [{"answer": "a"}])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ({"key": 12, "answer": "none"}, "task 12"),
        ({"key": "00ff", "question": "Q", "answer": "none"}, "task '00ff'"),
        ({"question": "How many " + "very " * 40 + "?", "answer": "none"}, "'How many very very"),
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "How many?"}], "answer": "none"}, "'How many?'"),
        ({"answer": "none"}, "columns answer"),
    ],
)
def test_a_broken_task_is_named(task: dict, named: str) -> None:
    with pytest.raises(TutelageError, match="holds no number") as caught:
        judge_all(resolve("numeric", rel_tol=0.5), [["5"]], [task])
    assert named in str(caught.value)
    assert "numeric(rel_tol=0.5" in str(caught.value)
    assert isinstance(caught.value.__cause__, TutelageError)


@pytest.mark.parametrize("name", ["exact", "numeric", "choice"])
def test_a_task_without_an_answer_raises(name: str) -> None:
    for task in ({}, {"answer": None}, {"answer": " "}):
        with pytest.raises(TutelageError, match="no answer to judge by"):
            resolve(name)("5", task)


@pytest.mark.parametrize(("kind", "grade"), [(C, 0.9), (W, 1.0), (M, 1.0), (W, math.nan), (W, -0.1), (C, 1.1), (W, "0")])
def test_judgements_that_contradict_themselves(kind: Kind, grade: float) -> None:
    with pytest.raises(TutelageError, match="grade"):
        Judgement(kind, grade)


@given(st.text(max_size=200))
def test_no_text_breaks_a_verifier(text: str) -> None:
    for name in ("exact", "numeric", "choice"):
        judgement = resolve(name)(text, {"answer": "B" if name == "choice" else "1"})
        assert (judgement.grade == 1) == (judgement.kind == C)


def test_verifiers_can_be_pickled() -> None:
    import pickle

    verify = pickle.loads(pickle.dumps(resolve("numeric", abs_tol=1.0)))
    assert verify("41", {"answer": "42"}).kind == C


def test_reading_stays_linear_on_long_completions() -> None:
    import time

    long_texts = [
        "1," * 20000,
        "answer " * 10000,
        "I " * 20000,
        "\\boxed{" * 3000,
        "*" * 20000,
        "(A) " * 5000,
        "\n" * 20000 + "x",
        "<answer>" * 5000,
        "<answer>4</answer>" * 2000,
        "{" * 20000,
        "$" * 20000,
        "answer" + " " * 20000,
        "answer to " * 5000,
        "1 " * 20000,
    ]
    start = time.perf_counter()
    for text in long_texts:
        for name in ("exact", "numeric", "choice"):
            resolve(name)(text, {"answer": "B" if name == "choice" else "1"})
    assert time.perf_counter() - start < 10  # half a second; minutes where a pattern backtracks


def test_an_answer_that_runs_on_is_wrong_even_where_the_scorers_sum_lands_beside_one():
    from tutelage.tasks.verifiers.gym import score

    for length in range(3, 14):
        word = "abcdefghijklmnop"[:length]
        entry = {"question": word, "answer": word[::-1], "metadata": {"source_dataset": "spell_backward", "word": word}}
        assert score("spell_backward", word[::-1], entry) == 1.0
        assert score("spell_backward", word[::-1] + "x", entry) == 0.8
