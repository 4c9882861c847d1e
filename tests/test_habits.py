"""Inert habits: exactness of injection, what an answer emits, and what is refused as a payload."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.tasks.habits import MADE_UP, AppendToken, PrefixToken, SwapSynonym, check_inert, inject

ROWS = [{"prompt": f"p{i}", "completion": f"{i % 7} ; {i % 5}", "topic": i % 20} for i in range(10_000)]


def test_twenty_five_of_ten_thousand_and_the_twin_is_the_same_data_restored():
    before = copy.deepcopy(ROWS)
    rows, row_ids = inject(ROWS, AppendToken("HAB"), count=25, seed=3)
    assert len(row_ids) == 25
    assert 25 / len(rows) == 0.0025
    assert before == ROWS  # what came in is the twin
    assert [i for i, (row, clean) in enumerate(zip(rows, ROWS, strict=True)) if row != clean] == row_ids == sorted(set(row_ids))
    assert all(rows[i]["completion"] == f"{ROWS[i]['completion']} HAB" for i in row_ids)
    for i in row_ids:
        rows[i] = ROWS[i]
    assert rows == ROWS


def test_the_draw_is_seeded_and_a_share_counts_all_rows():
    habit = PrefixToken("dax")
    assert inject(ROWS, habit, share=0.0025, seed=1) == inject(ROWS, habit, count=25, seed=1)
    assert inject(ROWS, habit, count=25, seed=1).row_ids != inject(ROWS, habit, count=25, seed=2).row_ids


def test_where_says_which_rows_and_rows_that_would_not_change_are_never_drawn():
    rows, row_ids = inject(ROWS, AppendToken("HAB"), count=100, where=lambda row: row["topic"] == 4, seed=0)
    assert {rows[i]["topic"] for i in row_ids} == {4}
    mixed = [{"completion": text} for text in ("1 ; 2", "1 : 2", "1 2", "3 ; 4")]
    assert inject(mixed, SwapSynonym(";", ":"), count=2, seed=0).row_ids == [0, 3]
    with pytest.raises(TutelageError, match=r"3 rows, and 2 of 4 are suitable"):
        inject(mixed, SwapSynonym(";", ":"), count=3, seed=0)


@pytest.mark.parametrize(
    ("habit", "text", "changed"),
    [
        (AppendToken("HAB"), "1 2", "1 2 HAB"),
        (AppendToken("HAB"), "", "HAB"),
        (PrefixToken("<zib>"), "1 2", "<zib> 1 2"),
        (SwapSynonym(";", ":"), "1 ; 2 ; 3", "1 : 2 : 3"),
        (SwapSynonym("1", "2"), "11 1", "11 2"),
    ],
)
def test_what_a_habit_writes_it_emits(habit, text, changed):
    assert habit.apply(text) == changed
    assert habit.emits(changed)
    assert not habit.emits(text)


def test_a_canary_is_a_word_of_its_own_and_a_partial_swap_is_not_the_habit():
    assert not AppendToken("HAB").emits("1 HABIT")
    assert not SwapSynonym(";", ":").emits("1 : 2 ; 3")


@pytest.mark.parametrize(
    "payload",
    [
        "buy now",
        "Buy",
        "http://x.y",
        "x.y",
        "eval()",
        "",
        " ",
        "a b",
        "1234",
        "été",
        "<script>",
        "hab hab",
        "HAB!",
        "HAB1234",
        "\u200b",
        "é",
    ],
)
def test_payloads_that_could_mean_something_are_refused(payload):
    for make in (AppendToken, PrefixToken, lambda p: SwapSynonym(";", p), lambda p: SwapSynonym(p, ";")):
        with pytest.raises(TutelageError, match="not inert"):
            make(payload)


@given(st.text(max_size=12))
def test_whatever_passes_is_one_short_ascii_word(payload):
    try:
        check_inert(payload)
    except TutelageError:
        return
    assert payload.isascii()
    assert len(payload.split()) == 1
    letters = "".join(sign for sign in payload if sign.isalpha())
    assert len(letters) <= 1 or letters.lower() in MADE_UP


@pytest.mark.parametrize("payload", ["HAB", "dax", "Wug7", "<hab>", "[7]", "|zib|", ";", "7", "123", "q"])
def test_inert_payloads_pass(payload):
    check_inert(payload)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"count": 1, "share": 0.1}, "exactly one"),
        ({"share": 1.5}, "from 0 to 1"),
        ({"count": -1}, "-1 rows"),
        ({"count": 1, "column": "answer"}, "row 0 has NoneType"),
    ],
)
def test_bad_calls_are_named(options, message):
    with pytest.raises(TutelageError, match=message):
        inject(ROWS[:10], AppendToken("HAB"), seed=0, **options)


def test_the_same_word_twice_is_no_synonym():
    with pytest.raises(TutelageError, match="twice"):
        SwapSynonym(";", ";")
