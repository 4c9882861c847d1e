"""The report in a real Chromium: no console errors, the table's numbers are the JSON's, tooltips work, nothing overflows.

Needs a system Chromium (chromium, chromium-browser or google-chrome on the path), and skips loudly where there is none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from leagues import degenerate_leagues, make_league
from test_audit_page import VERDICT
from tutelage.audits.page import write_page
from tutelage.study import words
from tutelage.study.report import write_report
from tutelage.study.schema import check_league

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=4000",
)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))]
    if not found:
        message = "NO CHROMIUM FOUND: the report was NOT opened in a browser. Install one (Debian: apt-get install chromium) and run again."
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return found[0]


def opened(chromium: str, page: Path, *, width: int = 1280, extra: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """The page's document after its scripts have run, and what the console complained about."""
    with tempfile.TemporaryDirectory() as profile:
        where = (f"--user-data-dir={profile}", f"--window-size={width},2400")
        environment = {**os.environ, "HOME": profile}
        command = [chromium, *FLAGS, *where, *extra, "--dump-dom", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, complaints


def driven(page: Path, script: str) -> Path:
    """A copy of the page whose policy is lifted, so that `script` can act on it; `script` returns what to write into the document."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    runner = (
        f"<script>addEventListener('load', () => {{ document.body.dataset.result = JSON.stringify((() => {{ {script} }})()); }});</script>"
    )
    copy = page.with_name("driven.html")
    copy.write_text(html.replace("</body>", f"{runner}</body>"), encoding="utf-8")
    return copy


def result(dom: str) -> Any:
    class Body(HTMLParser):
        found = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found = dict(attrs).get("data-result") or self.found

    body = Body()
    body.feed(dom)
    return json.loads(body.found)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    league = make_league()
    out = tmp_path_factory.mktemp("report")
    (out / "league.json").write_text(json.dumps(check_league(league)))
    return write_report(league, out)


CELLS = """
return [...document.querySelectorAll("tr[data-name]")].flatMap((row) => [...row.querySelectorAll("[data-key]")].map((cell) =>
  ({ row: row.dataset.name, key: cell.dataset.key, value: JSON.parse(cell.dataset.value), shown: cell.innerText })));
"""


def test_the_console_is_silent_and_a_planted_error_would_be_heard(chromium: str, report: Path) -> None:
    assert opened(chromium, report)[1] == []
    planted = driven(report, "console.error('planted'); return 1;")
    assert any("planted" in line for line in opened(chromium, planted)[1])
    foreign = report.with_name("foreign.html")
    foreign.write_text(report.read_text().replace("</body>", "<script>document.title = 'changed'</script></body>"))
    dom, complaints = opened(chromium, foreign)
    assert "<title>changed" not in dom
    assert any("Content Security Policy" in line for line in complaints)


def test_the_numbers_on_the_page_are_those_of_league_json(chromium: str, report: Path) -> None:
    dom, complaints = opened(chromium, driven(report, CELLS))
    assert complaints == []
    league = json.loads((report.parent / "league.json").read_text())
    rows = {row["name"]: row for row in league["rows"]}
    seen = set()
    for cell in result(dom):
        row, key = rows[cell["row"]], cell["key"]
        exact = row["cost"][key.removeprefix("cost.")] if key.startswith("cost.") else row[key]
        assert cell["value"] == exact, (cell, exact)
        assert cell["shown"].strip() == shown(key, exact), cell
        seen.add((cell["row"], key))
    both = {"final", "final_sd", "worst_arm", "hardest", "area", "verdict", "rollouts_to_target_ratio", "seconds_to_target_ratio"}
    costs = {f"cost.{key}" for key in league["rows"][0]["cost"]}
    compared = {"difference", "interval", "p_holm"}
    wanted = {(name, key) for name in rows for key in both | costs}
    wanted |= {(name, key) for name, row in rows.items() if row["difference"] is not None for key in compared}
    assert wanted <= seen


def shown(key: str, exact: Any) -> str:
    if key.startswith("cost."):
        return words.duration(exact) if key.endswith("seconds") else words.count(exact)
    if key.endswith("ratio"):
        return words.ratio(exact)
    if key == "interval":
        return words.interval(exact)
    return {
        "difference": lambda: words.signed(exact),
        "verdict": lambda: exact,
        "p_holm": lambda: f"p = {words.p_value(exact)}",
        "final_sd": lambda: f"±{exact:.3f}",
    }.get(key, lambda: words.score(exact))()


HOVER = """
const tip = document.getElementById("tip"), seen = {};
function over(name, element, x, y) {
  const box = element.getBoundingClientRect();
  const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
  for (const type of ["pointerenter", "pointermove"]) element.dispatchEvent(new PointerEvent(type, place));
  seen[name] = tip.hidden ? null : tip.innerText;
  element.dispatchEvent(new PointerEvent("pointerleave", place));
  seen[name + " left"] = tip.hidden;
}
over("rollouts", document.querySelector("svg[data-curves=rollouts]"), 0.5, 0.5);
over("seconds", document.querySelector("svg[data-curves=seconds]"), 0.5, 0.5);
over("heat", document.querySelector("svg[data-heat]"), 0.9, 0.02 + 5 / 300);
over("dot", document.querySelector(".families circle"), 0.5, 0.5);
over("heading", document.querySelector("th[data-tip]"), 0.5, 0.5);
const button = document.querySelector(".legend button");
button.click();
seen.lit = document.querySelectorAll("figure .lit").length;
seen.dimmed = document.querySelectorAll("figure svg.dimmed").length;
seen.pressed = button.getAttribute("aria-pressed");
button.click();
seen.undone = document.querySelectorAll("figure .lit").length;
return seen;
"""


def test_tooltips_and_the_key_work(chromium: str, report: Path) -> None:
    dom, complaints = opened(chromium, driven(report, HOVER))
    assert complaints == []
    seen = result(dom)
    names = ("sec", "dump", "odf", "uniform")
    for axis in ("rollouts", "seconds"):
        lines = seen[axis].splitlines()
        assert axis in lines[0]
        assert all(any(name in line for line in lines[1:]) for name in names)
        assert re.search(r"0\.\d{3}\s+0\.\d{3}–0\.\d{3}", seen[axis])
    league = make_league()
    assert re.fullmatch(r"\S+/\d\nabout step \d+: \d+\.\d % of the tasks", seen["heat"])
    assert seen["heat"].split("\n")[0] in league["arm_names"]
    assert re.fullmatch(r"chain_sum/1\n.+: 0\.\d{3} → 0\.\d{3}", seen["dot"])
    assert "sign-flip" in seen["heading"]
    assert all(seen[f"{name} left"] for name in ("rollouts", "seconds", "heat", "dot", "heading"))
    assert seen["pressed"] == "true"
    assert seen["lit"] > 10
    assert seen["dimmed"] >= 3
    assert seen["undone"] == 0


FIT = """
const limit = Math.min(document.documentElement.clientWidth, WIDTH);
document.documentElement.style.width = limit + "px";  // narrower than a headless window can be
const wide = [...document.querySelectorAll("main *")].filter((element) => {
  if (element.closest(".scroll table:not(.league), pre, svg, .league thead")) return false;
  if (element.closest(".scroll") && innerWidth > 760) return false;
  return element.getBoundingClientRect().right > limit + 1;
});
return { scripts: document.scripts.length, images: document.images.length, wide: wide.map((element) => element.outerHTML.slice(0, 80)) };
"""
FITS = {"scripts": 4, "images": 0, "wide": []}  # two of JSON, the page's own, and the test's


@pytest.mark.parametrize("width", [360, 900, 1600])
def test_nothing_overflows_at_any_width(chromium: str, report: Path, width: int) -> None:
    assert result(opened(chromium, driven(report, FIT.replace("WIDTH", str(width))), width=max(width, 500))[0]) == FITS


@pytest.mark.parametrize("name", ["one arm", "one seed", "long names", "hostile names", "100 arms", "nothing logged", "no cells"])
def test_unusual_leagues_open_without_errors_and_fit_a_phone(chromium: str, tmp_path: Path, name: str) -> None:
    page = write_report(degenerate_leagues()[name], tmp_path)
    assert opened(chromium, page, width=500)[1] == []
    assert result(opened(chromium, driven(page, FIT.replace("WIDTH", "390")), width=500)[0]) == FITS


def test_dark_mode_is_dark(chromium: str, report: Path) -> None:
    grounds = "return [getComputedStyle(document.body).backgroundColor, matchMedia('(prefers-color-scheme: dark)').matches];"
    light, is_dark = result(opened(chromium, driven(report, grounds))[0])
    dark, was_dark = result(opened(chromium, driven(report, grounds), extra=("--blink-settings=preferredColorScheme=0",))[0])
    assert (is_dark, was_dark) == (False, True)
    assert (light, dark) == ("rgb(253, 253, 251)", "rgb(20, 23, 28)")


def test_the_page_of_an_audit_opens_and_answers_the_pointer(chromium: str, tmp_path: Path) -> None:
    page = write_page(VERDICT, tmp_path / "page.html")
    assert opened(chromium, page)[1] == []
    script = """
    const svg = document.querySelector("svg[data-curves]"), box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width * 0.97, clientY: box.top + box.height / 2 }));
    const tip = document.getElementById("tip");
    return { tip: tip.innerText, wide: document.documentElement.scrollWidth > innerWidth,
             severities: [...document.querySelectorAll("tr [data-key=severity]")].map((cell) => JSON.parse(cell.dataset.value)) };
    """
    for width in (1280, 500):
        found = result(opened(chromium, driven(page, script), width=width)[0])
        assert found["severities"] == ["high", "none"]
        assert not found["wide"]
        assert re.search(r"reward\s+0\.[67]\d+", found["tip"])
        assert "outcome" in found["tip"]
