"""The README tells the truth: its atlas and its table are what the result files say."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from tutelage.study.atlas import atlas
from tutelage.study.schema import check_league
from tutelage.study.table import render

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(begin: str, end: str) -> str:
    return README.split(begin, 1)[1].split(end, 1)[0].strip()


def test_the_atlas_is_generated_from_the_results():
    assert between("<!-- atlas:begin -->", "<!-- atlas:end -->") == atlas(ROOT / "results").strip()


def test_the_first_table_is_the_published_comparison():
    league = check_league(json.loads((ROOT / "results" / "builtin" / "league.json").read_text()))
    out = io.StringIO()
    render(league, Console(file=out, width=100, force_terminal=False, color_system=None))
    shown = [line.strip() for line in between("```text", "```").splitlines() if line.strip()]
    printed = [line.strip() for line in out.getvalue().splitlines() if line.strip()]
    assert shown[: len(printed)] == printed
