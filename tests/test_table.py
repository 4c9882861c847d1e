"""The league table in the terminal: it fits, it says what the league says, and bad leagues are refused with the place."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
from rich.console import Console

from leagues import degenerate_leagues, make_league
from tutelage.errors import TutelageError
from tutelage.study import words
from tutelage.study.schema import check_league, display_name, ranked, without_nan
from tutelage.study.table import render

DEGENERATE = degenerate_leagues()


def printed(league: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render(check_league(league), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("name", ["usual", *DEGENERATE])
def test_the_table_fits_whatever_the_league(name: str, width: int) -> None:
    text = printed(make_league() if name == "usual" else DEGENERATE[name], width)
    assert max(map(len, text.splitlines())) <= min(width, 100)


def test_the_table_shows_every_number_of_every_row() -> None:
    league = make_league()
    text = printed(league)
    for row in league["rows"]:
        for number in (row["final"], row["worst_arm"], row["hardest"], row["area"]):
            assert f"{number:.3f}" in text
        for number in (row["rollouts_to_target_ratio"], row["seconds_to_target_ratio"]):
            assert f"{number:.2f}×" in text
        if row["difference"] is not None:
            assert f"{abs(row['difference']):.3f} ±{(row['interval'][1] - row['interval'][0]) / 2:.3f}" in text
        assert row["verdict"] in text


def test_the_table_is_ranked_and_missing_scores_come_last() -> None:
    league = make_league()
    league["rows"][1]["final"] = None
    finals = [row["final"] for row in ranked(league)]
    assert finals[-1] is None
    assert finals[:-1] == sorted(finals[:-1], reverse=True)


def test_sentences_stand_below_the_table_whole() -> None:
    league = make_league()
    text = " ".join(printed(league, 100).split())
    assert "Over 8 seeds, sec teaches better and odf teaches worse than uniform. For dump, no difference is shown." in text
    sec = next(row for row in league["rows"] if row["name"] == "sec")
    assert sec["sentence"].split(",")[0] in text


def test_columns_left_out_on_a_narrow_console_are_named() -> None:
    text = printed(make_league(), 80)
    assert "Left out for the width: hardest level, area, time to 0.45." in text
    assert "Left out" not in printed(make_league(), 100)


def test_no_target_no_ratio_columns() -> None:
    assert "rollouts\n" not in printed(make_league(target=None))
    assert "×" not in printed(make_league(target=None))


def test_markup_in_names_is_printed_not_obeyed() -> None:
    assert "[red]n[/red]" in printed(DEGENERATE["hostile names"])


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["holds"], "Over 8 seeds, m0 teaches better than uniform."),
        (["holds", "holds", "reversed"], "Over 8 seeds, m0 and m1 teach better and m2 teaches worse than uniform."),
        (["holds", "not shown"], "Over 8 seeds, m0 teaches better than uniform. For m1, no difference is shown."),
        (["not shown", "not shown", "not shown"], "Over 8 seeds, no difference from uniform is shown for m0, m1 and m2."),
        (["too few seeds"], "Over 8 seeds, nothing can be said yet: too few seeds for a verdict."),
    ],
)
def test_the_headline_says_what_the_verdicts_say(verdicts: list[str], said: str) -> None:
    league = make_league()
    template = league["rows"][1]
    league["rows"] = [league["rows"][0]]
    league["rows"] += [{**template, "name": f"m{i}", "label": f"m{i}", "verdict": word} for i, word in enumerate(verdicts)]
    assert words.headline(league) == said


def test_a_control_is_no_headline() -> None:
    league = make_league()
    for row in league["rows"]:
        row["verdict"] = "baseline" if row["kind"] == "baseline" else "holds" if row["kind"] == "control" else "not shown"
    assert "better" not in words.headline(league)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (words.signed(-0.0004), "0.000"),
        (words.signed(-0.0312), "−0.031"),
        (words.signed(0.0312), "+0.031"),
        (words.signed(None), "–"),
        (words.interval([-0.01, 0.0499]), "[−0.010, 0.050]"),
        (words.interval(None), ""),
        (words.interval([None, None]), ""),
        (words.count(12288.0), "12,288"),
        (words.count(1_257_000.0), "1.26 M"),
        (words.duration(0.0), "0 s"),
        (words.duration(0.0004), "0.4 ms"),
        (words.duration(0.42), "0.42 s"),
        (words.duration(95.2), "95 s"),
        (words.duration(750.0), "12.5 min"),
        (words.duration(11520.0), "3.2 h"),
        (words.p_value(0.00001), "<0.001"),
        (words.p_value(0.03125), "0.031"),
        (
            words.typeset("worse: -0.038 [-0.049, -0.026], p = 1e-05 of gpt-4 and f(x)-2"),
            "worse: −0.038 [−0.049, −0.026], p = 1e-05 of gpt-4 and f(x)-2",
        ),
    ],
)
def test_numbers_in_words(got: str, want: str) -> None:
    assert got == want


def test_nan_and_infinity_become_null_at_any_depth() -> None:
    assert without_nan({"a": [math.nan, 1.0, (math.inf, "x")], "b": {"c": -math.inf}, "d": True}) == {
        "a": [None, 1.0, [None, "x"]],
        "b": {"c": None},
        "d": True,
    }


def broken(change: str) -> Any:
    league = copy.deepcopy(make_league(seeds=1, evaluations=3, steps=5))
    cell = league["cells"][0]
    if change == "missing":
        del league["rows"][2]["final"]  # type: ignore[misc]
    elif change == "type":
        league["rows"][2]["final"] = "high"  # type: ignore[typeddict-item]
    elif change == "twice":
        league["rows"].append(league["rows"][0])
    elif change == "row":
        cell["row"] = "elsewhere"
    elif change == "ragged":
        cell["curve"]["seconds"].pop()
    elif change == "arms":
        cell["taught"]["share"][1] = [1.0]
    return league


@pytest.mark.parametrize(
    ("change", "words_of_the_error"),
    [
        ("missing", "at rows.2.final, field required"),
        ("type", "at rows.2.final, input should be a valid number"),
        ("twice", "'uniform' occurs twice"),
        ("row", "'elsewhere', seed 0 belongs to no row"),
        ("ragged", "a curve whose lists differ in length"),
        ("arms", "does not have 32 numbers"),
    ],
)
def test_a_broken_league_is_refused_with_the_place(change: str, words_of_the_error: str) -> None:
    with pytest.raises(TutelageError, match=r"league\.json") as error:
        check_league(broken(change), "league.json")
    assert words_of_the_error in str(error.value)


def test_display_name_joins_label_and_note() -> None:
    assert [display_name(row) for row in make_league()["rows"][3:5]] == ["odf", "odf (at equal updates)"]


def test_supervised_training_is_counted_in_updates() -> None:
    text = printed(DEGENERATE["supervised"])
    assert "updates" in text.splitlines()[3]
    assert "rollouts" not in text.splitlines()[3]


def test_further_comparisons_are_printed() -> None:
    assert "odf against uniform@odf: teaches worse than it: −0.069 [−0.080, −0.058]" in printed(make_league())
