"""Verdicts: what stands on the headline, the way through JSON and back, and what a reader sees."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from tutelage.audits import Check, Effect, Verdict, Warned
from tutelage.audits.verdict import render
from tutelage.errors import TutelageError
from tutelage.registry import NOUNS, audits


def verdict(*checks: Check, **more: object) -> Verdict:
    given = {"audit": "rewards", "subject": "log.jsonl", "false_positive_rate": 0.05, "command": "tutelage audit rewards log.jsonl"}
    return Verdict(checks=checks, **(given | more))  # type: ignore[arg-type]


CLEAN = Check(name="clean", finding="nothing of note", effect=Effect(what="share", value=0.0, low=0.0, high=0.1, hits=0, trials=30))
UNTESTED = Check(name="untested", finding="not tested: two steps only")
BAD = Check(
    name="bad", finding="the reward rose while the outcome fell", severity="high", p=0.001, p_holm=0.002, base_rate=0.0,
    effect=Effect(what="change", value=-0.3, low=-0.4, high=-0.2), evidence=({"row": 3, "completion": "ß" * 400},),
)  # fmt: skip


def test_the_headline_is_the_gravest_check() -> None:
    milder = Check(name="milder", finding="mild", severity="low", p=1e-9)
    surer = Check(name="surer", finding="surer", severity="high", p=1e-6)
    found = verdict(CLEAN, milder, BAD, surer)
    assert found.found
    assert (found.finding, found.severity) == ("surer", "high")
    assert verdict(CLEAN, BAD).evidence == BAD.evidence
    assert verdict(CLEAN, BAD).effect == BAD.effect
    assert verdict(CLEAN, BAD).base_rate == 0.0
    assert not verdict(CLEAN, UNTESTED).found
    assert verdict(CLEAN, UNTESTED).finding == "nothing found by 1 of 2 checks; the others lacked data"


def test_json_round_trip() -> None:
    full = verdict(CLEAN, BAD, UNTESTED, warnings=(Warned(what="rewards that are NaN", count=3, first="line 7"),))
    text = full.to_json()
    assert Verdict.from_json(text) == full
    headline = json.loads(text)
    assert (headline["found"], headline["severity"], headline["finding"]) == (True, "high", BAD.finding)


def test_json_has_no_nan_and_no_numpy() -> None:
    odd = Check(name="odd", finding="odd", evidence=({"reward": math.nan, "step": np.int64(3), "solved": np.float32(0.5), 4: [1, None]},))
    text = verdict(odd).to_json()
    assert "NaN" not in text
    assert json.loads(text)["checks"][0]["evidence"] == [{"reward": None, "step": 3, "solved": 0.5, "4": [1, None]}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no verdict"),
        ("[]", "got 'list'"),
        ('{"schema": 9}', "got 9"),
        ('{"schema": 1}', "broken"),
        ('{"schema": 1, "checks": [{"name": "a"}], "warnings": []}', "broken"),
        ('{"schema": 1, "checks": [{"name": "a", "effect": null, "evidence": [], "finding": "x", "sevrity": "low"}], "warnings": []}',
         "Did you mean 'severity'"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_refused(text: str, said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        Verdict.from_json(text)


def test_broken_promises_are_refused() -> None:
    with pytest.raises(TutelageError, match="without checks"):
        verdict()
    with pytest.raises(TutelageError, match="between 0 and 1"):
        verdict(CLEAN, false_positive_rate=5)
    with pytest.raises(TutelageError, match="Did you mean 'medium'"):
        Check(name="a", finding="b", severity="medum")  # type: ignore[arg-type]


def test_rendering_shows_findings_evidence_warnings_and_the_command() -> None:
    out = io.StringIO()
    full = verdict(CLEAN, BAD, subject="odd[/bold].jsonl", warnings=(Warned(what="truncated [red] line", count=1200, first="line 9"),))
    render(full, Console(file=out, width=100))
    shown = " ".join(out.getvalue().split())
    for words in (
        BAD.finding,
        "-0.3",
        "[-0.4, -0.2]",
        "row=3",
        "truncated [red] line: 1,200 (first: line 9)",
        "at most 0.05",
        full.command,
    ):
        assert words in shown
    assert "odd[/bold].jsonl" in shown
    assert "ß" * 120 in out.getvalue().replace("\n", "").replace(" ", "")
    assert "ß" * 200 not in out.getvalue().replace("\n", "").replace(" ", "")


def test_audits_are_a_noun() -> None:
    assert audits in NOUNS
    assert (audits.noun, audits.group) == ("audit", "tutelage.audits")
