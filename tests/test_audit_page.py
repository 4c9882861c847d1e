"""The page of an audit: what a reader finds on it, that nothing in the subject becomes markup, and curves on the way through JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.audits import Check, Curve, Effect, Verdict, Warned
from tutelage.audits.page import verdict_html, write_page
from tutelage.errors import TutelageError

CURVES = (
    Curve(panel="reward and outcome", name="reward", x=(0, 1, 2), y=(0.0, 0.2, 0.7)),
    Curve(panel="reward and outcome", name="outcome", x=(0, 1, 2), y=(0.5, None, 0.1), low=(0.4, None, 0.0), high=(0.6, None, 0.2)),
)
BAD = Check(
    name="divergence", finding="the outcome changes by -0.4", severity="high", base_rate=0.01, p=0.001, p_holm=0.0021, curves=CURVES,
    effect=Effect(what="change of the <mean>", value=-0.4, low=-0.5, high=-0.3),
    evidence=({"where": "log.jsonl, line 3", "reward": math.nan, "completion": "<script>alert(1)</script>\n$title"},),
)  # fmt: skip
FINE = Check(name="dead", finding="12.0% of 40: groups", effect=Effect(what="share", value=0.12))
WARNED = Warned(what="values of reward that are <null>", count=1234, first="log.jsonl, line 7")
VERDICT = Verdict(
    audit="rewards", subject="a&b.jsonl", checks=(BAD, FINE), false_positive_rate=0.05, command="tutelage audit rewards 'a&b.jsonl'",
    warnings=(WARNED,),
)  # fmt: skip


def test_the_page_says_all_that_the_verdict_says(tmp_path: Path) -> None:
    page = write_page(VERDICT, tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "<h1>The outcome changes by −0.4</h1>" in page
    assert "tutelage audit rewards &#x27;a&amp;b.jsonl&#x27;" in page
    for said in ("log.jsonl, line 3", "[−0.5, −0.3]", "12.0% of 40", "1,234", "at most 5 %", 'data-value="0.0021"'):
        assert said in page
    assert re.findall(r'class="badge (\w+)"', page) == ["high", "high", "none", "high"]  # headline, two checks, evidence
    inside = re.search(r'id="league">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1]) == json.loads(VERDICT.to_json())


def test_nothing_of_the_subject_becomes_markup() -> None:
    page = verdict_html(VERDICT)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n$title" in page
    assert page.count("<script") == 3
    assert "change of the &lt;mean&gt;" in page


def test_curves_of_a_panel_are_drawn_together_and_gaps_are_left_out() -> None:
    page = verdict_html(VERDICT)
    assert page.count("data-curves=") == 1
    numbers = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    reward, outcome = numbers["curves"]["panel 0"]
    assert (reward["y"], reward["low"]) == ([0.0, 0.2, 0.7], None)
    assert (outcome["x"], outcome["y"], outcome["low"]) == ([0.0, 2.0], [0.5, 0.1], [0.4, 0.0])
    assert [numbers["rows"][part["row"]]["name"] for part in (reward, outcome)] == ["reward", "outcome"]


def test_a_verdict_without_findings_has_a_page_without_empty_sections() -> None:
    page = verdict_html(replace(VERDICT, checks=(FINE,), warnings=()))
    assert "<h1>Nothing found by 1 of 1 checks</h1>" in page
    assert re.findall(r'<section id="(\w+)"', page) == ["checks", "again"]


def test_curves_survive_json_and_broken_ones_are_refused() -> None:
    assert Verdict.from_json(VERDICT.to_json()).checks[0].curves == CURVES
    with pytest.raises(TutelageError, match=r"has 2 places and \[1\] values"):
        Curve(panel="p", name="n", x=(0, 1), y=(1,))
    with pytest.raises(TutelageError, match="both ends of the band or neither"):
        Curve(panel="p", name="n", x=(0,), y=(1,), low=(0,))
