"""The report: what its figures are made of, and what the page and the files hold. In a browser: test_report_browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leagues import STUDIED, degenerate_leagues, make_league
from tutelage.errors import TutelageError
from tutelage.study import answers, figures, report, series
from tutelage.study.canvas import DARK, LIGHT, Canvas, Cells, Dot, Line, Text, shortened
from tutelage.study.plates import draw, sheets
from tutelage.study.schema import check_league, display_name, ranked

DEGENERATE = degenerate_leagues()
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page's elements: refuses tags that do not close, and keeps scripts, table rows with their values, and references."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.values: dict[tuple[str, str], tuple[Any, str]] = {}
        self.references: list[str] = []
        self.words = ""
        self._row, self._key = "", ("", None)
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given_ = dict(attrs)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((given_, ""))
        if tag == "tr":
            self._row = given_.get("data-name") or ""
        if given_.get("data-key"):
            self._key = (str(given_["data-key"]), len(self.open))
            self.values[self._row, self._key[0]] = (json.loads(str(given_["data-value"])), "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        if self._key[1] == len(self.open):
            self._key = ("", None)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.words += data
        if self._key[0]:
            value, shown = self.values[self._row, self._key[0]]
            self.values[self._row, self._key[0]] = (value, shown + data)


def page_of(league: Any) -> str:
    checked = check_league(league)
    return report.report_html(checked, draw(checked))


@pytest.fixture(scope="module")
def usual() -> str:
    return page_of(make_league())


# --- the page


@pytest.mark.parametrize("name", DEGENERATE)
def test_every_league_makes_a_small_whole_page_that_loads_nothing(name: str) -> None:
    html = page_of(DEGENERATE[name])
    page = Page(html)
    assert len(html.encode()) < report.MOST_BYTES
    assert {reference for reference in page.references if not reference.startswith("#")} == {"data:,", "league.json", "figures/"}
    assert "@import" not in html
    assert "url(" not in html
    assert "NaN" not in html
    assert "undefined" not in page.words


def test_the_tables_hold_the_exact_numbers_of_the_league(usual: str) -> None:
    league, page = make_league(), Page(usual)
    keys = ("final", "final_sd", "worst_arm", "hardest", "area", "rollouts_to_target_ratio", "seconds_to_target_ratio", "verdict")
    for row in league["rows"]:
        for key in keys:
            assert page.values[row["name"], key][0] == row[key], (row["name"], key)  # type: ignore[literal-required]
        for key, amount in row["cost"].items():
            assert page.values[row["name"], f"cost.{key}"][0] == amount
        if row["difference"] is not None:
            for key in ("difference", "interval", "p_holm"):
                assert page.values[row["name"], key][0] == row[key]  # type: ignore[literal-required]
        assert page.values[row["name"], "final"][1] == f"{row['final']:.3f}"
        assert page.values[row["name"], "verdict"][1] == row["verdict"]


def test_the_page_opens_with_the_finding_and_the_sentences_of_the_methods_only(usual: str) -> None:
    text = Page(usual).words
    assert "Over 8 seeds, sec teaches better and odf teaches worse than uniform. For dump, no difference is shown." in text
    for row in make_league()["rows"]:
        assert (row["sentence"].replace("-0", "−0") in text) == (row["kind"] == "method") or not row["sentence"]


def test_the_embedded_league_is_the_league_without_single_lessons(usual: str) -> None:
    league = make_league()
    embedded = {attributes.get("id"): json.loads(text) for attributes, text in Page(usual).scripts if attributes.get("id")}
    assert set(embedded) == {"league", "figures"}
    kept = embedded["league"]
    for key, value in league.items():
        if key != "cells":
            assert kept[key] == value
    for cell, whole in zip(kept["cells"], league["cells"], strict=True):
        assert cell["curve"] == {key: values for key, values in whole["curve"].items() if key != "by_arm"}
        assert "taught" not in cell


def test_the_security_policy_allows_this_script_alone(usual: str) -> None:
    page = Page(usual)
    scripts = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(scripts) == 1
    assert base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode() in usual
    assert "default-src 'none'" in usual


def test_names_cannot_become_markup() -> None:
    league = DEGENERATE["hostile names"]
    page = Page(page_of(league))
    assert len(page.scripts) == 3
    for phrase in (league["title"], league["command"], "x & </script>", "[red]n[/red]", *league["arm_names"]):
        assert phrase in page.words, phrase


@given(st.recursive(st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=8))
@settings(max_examples=100, deadline=None)
def test_embedded_json_survives_a_script_element(value: Any) -> None:
    text = report.embedded(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_control_characters_do_not_break_the_drawings() -> None:
    league = make_league(arms=["a\x00b\x1b/1", "c\ud800d/2"], seeds=1, evaluations=3, steps=6)
    checked = check_league(league)
    for sheet in sheets(checked, draw(checked)).values():
        ET.fromstring(sheet.file_svg().encode())
    page_of(league).encode()


def test_the_same_league_gives_the_same_page(usual: str) -> None:
    assert page_of(make_league()) == usual


def test_a_large_league_sheds_what_only_the_script_reads_and_then_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    league = check_league(make_league(seeds=2))
    plates = draw(league)
    sizes = [len(report._page(league, plates, detail).encode()) for detail in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    for detail, size in enumerate(sizes):
        monkeypatch.setattr(report, "MOST_BYTES", size + 1)
        assert report.report_html(league, plates) == report._page(league, plates, detail)
    monkeypatch.setattr(report, "MOST_BYTES", sizes[-1])
    with pytest.raises(TutelageError, match="would exceed"):
        report.report_html(league, plates)


def test_a_very_large_league_stays_small() -> None:
    studied = tuple((f"m{index}", f"m{index}", "", "method" if index else "baseline", index * 0.05) for index in range(10))
    arms = [f"family_{index // 4}/{index % 4}" for index in range(240)]
    league = make_league(arms=arms, seeds=6, studied=studied, evaluations=20, steps=60)
    assert len(page_of(league).encode()) < 2_000_000


# --- the files


def test_report_and_figures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = report.write_report(make_league(seeds=2), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    names = {"differences", "learning_curves", "taught", "by_arm"}
    written = {file.name for file in (path.parent / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for name in names:
        root = ET.parse(path.parent / "figures" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in (path.parent / "figures" / f"{name}.svg").read_text()
        png = (path.parent / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == pytest.approx(2 * float(root.attrib["width"]), abs=2)


def test_without_matplotlib_the_figures_are_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    report.write_report(make_league(seeds=1, evaluations=3, steps=6), tmp_path)
    kinds = {file.suffix for file in (tmp_path / "figures").iterdir()}
    assert kinds == {".svg"}
    with pytest.raises(TutelageError, match="matplotlib"):
        Canvas(10, 10).png()


def test_a_png_shows_what_the_svg_says() -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    from io import BytesIO

    canvas = Canvas(40, 20)
    canvas.add(Cells(cells=[(10, 5, 10, 10)], colour="series-0"), Line(points=[(30, 0), (30, 20)], colour="series-1", width=4))
    pixels = image.open(BytesIO(canvas.png(1.0))).convert("RGB")
    assert pixels.size == (40, 20)
    assert "#{:02x}{:02x}{:02x}".format(*pixels.getpixel((15, 10))) == LIGHT["series-0"]
    assert "#{:02x}{:02x}{:02x}".format(*pixels.getpixel((30, 10))) == LIGHT["series-1"]
    assert pixels.getpixel((2, 2)) == (255, 255, 255)


def test_a_broken_league_leaves_the_old_report(tmp_path: Path) -> None:
    path = report.write_report(make_league(seeds=1, evaluations=3, steps=6), tmp_path)
    before = path.read_bytes()
    broken: Any = copy.deepcopy(make_league(seeds=1, evaluations=3, steps=6))
    del broken["rows"][0]["cost"]
    with pytest.raises(TutelageError, match=r"rows\.0\.cost"):
        report.write_report(broken, tmp_path)
    assert path.read_bytes() == before


def test_nan_is_read_as_null(tmp_path: Path) -> None:
    league = make_league(seeds=1, evaluations=3, steps=6)
    league["rows"][1]["hardest"] = float("nan")
    league["cells"][0]["curve"]["by_arm"][-1][0] = float("nan")
    page = Page(report.write_report(league, tmp_path).read_text())
    assert page.values[league["rows"][1]["name"], "hardest"] == (None, "–")


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TutelageError, match="file"):
        report.write_report(make_league(seeds=1, evaluations=3, steps=6), tmp_path / "file")


# --- what the figures show


def league_of(*curves: tuple[list[float], list[float]], **taught: Any) -> Any:
    """A league whose row "uniform" has one seed for each (seconds, accuracy)."""
    league = make_league(arms=["a", "b"], seeds=len(curves), studied=STUDIED[:1], evaluations=2, steps=2)
    for cell, (seconds, accuracy) in zip(league["cells"], curves, strict=True):
        blank = [0.0] * len(seconds)
        step = list(range(len(seconds)))
        cell["curve"] = {
            "step": step,
            "rollouts": [8.0 * value for value in step],
            "tokens": blank,
            "seconds": list(seconds),
            "accuracy": list(accuracy),
            "by_arm": [[value, value] for value in accuracy],
        }
        if taught:
            cell["taught"] = taught  # type: ignore[typeddict-item]
    return check_league(league)


def test_seeds_are_interpolated_to_common_points_and_never_extended() -> None:
    league = league_of(([0, 10, 20], [0.0, 0.5, 1.0]), ([0, 20, 40], [0.0, 0.2, 0.4]))
    curve = series.mean_curve(league, "uniform", "seconds", np.random.default_rng(0))
    assert curve is not None
    assert curve.x_X.tolist() == [0, 15, 20]  # means of the seeds' points, and the end of the faster seed
    assert curve.mean_X == pytest.approx([0, (0.75 + 0.15) / 2, (1.0 + 0.2) / 2])
    assert curve.low_X is not None
    assert curve.high_X is not None
    assert np.all(curve.low_X <= curve.mean_X + 1e-12)
    assert np.all(curve.high_X >= curve.mean_X - 1e-12)


def test_points_without_a_number_are_left_out_and_one_seed_has_no_band() -> None:
    league = league_of(([0, 10, 20], [0.1, float("nan"), 0.3]))
    curve = series.mean_curve(league, "uniform", "seconds", np.random.default_rng(0))
    assert curve is not None
    assert curve.x_X.tolist() == [0, 20]
    assert curve.low_X is None
    nothing = league_of(([0, 10], [float("nan"), float("nan")]))
    assert series.mean_curve(nothing, "uniform", "seconds", np.random.default_rng(0)) is None


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    x = np.linspace(0, 1000, 5000)
    curve = series.mean_curve(league_of((x.tolist(), (x / 1000).tolist())), "uniform", "seconds", np.random.default_rng(0))
    assert curve is not None
    assert len(curve.x_X) <= series.MOST_POINTS
    assert curve.x_X[[0, -1]].tolist() == [0, 1000]
    assert curve.mean_X == pytest.approx(curve.x_X / 1000)


def test_shares_are_averaged_by_the_steps_they_stand_for() -> None:
    log = {"step": [1, 2, 3, 4], "share": [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]}
    taught = series.taught(league_of(([0, 1], [0, 1]), **log), "uniform", 2)
    assert taught is not None
    assert taught.share_AC.tolist() == [[1.0, 0.25], [0.0, 0.75]]
    assert taught.step_C.tolist() == [1.0, 3.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 100), st.integers(0, 99))
def test_binning_conserves_what_was_taught(gaps: list[int], columns: int, seed: int) -> None:
    step = np.cumsum(gaps)
    share_LA = np.random.default_rng(seed).dirichlet([1, 1], len(step))
    log = {"step": step.tolist(), "share": share_LA.tolist()}
    taught = series.taught(league_of(([0, 1], [0, 1]), **log), "uniform", columns)
    assert taught is not None
    assert taught.share_AC.shape[1] <= min(columns, len(step))
    assert taught.share_AC.sum(axis=0) == pytest.approx(np.ones(taught.share_AC.shape[1]))
    first = np.median(np.diff(step)) if len(step) > 1 else 1.0
    weight_L = np.concatenate([[first], np.diff(step)])
    assert taught.share_AC.mean(axis=1) == pytest.approx(weight_L @ share_LA / weight_L.sum())


def test_a_seed_that_stopped_early_leaves_later_stretches_to_the_others() -> None:
    league = league_of(([0, 1], [0, 1]), ([0, 1], [0, 1]))
    league["cells"][0]["taught"] = {"step": [1, 2], "share": [[1.0, 0.0], [1.0, 0.0]]}
    league["cells"][1]["taught"] = {"step": [1, 2, 3, 4], "share": [[0.0, 1.0]] * 4}
    taught = series.taught(league, "uniform", 4)
    assert taught is not None
    assert taught.share_AC[0].tolist() == [0.5, 0.5, 0.0, 0.0]


def test_accuracy_before_and_after_by_arm() -> None:
    league = league_of(([0, 1], [0.1, 0.5]), ([0, 1], [0.3, 0.9]))
    league["cells"][1]["curve"]["by_arm"][-1][1] = None
    assert series.accuracy_by_arm(league, None, 0) == pytest.approx([0.2, 0.2])
    assert series.accuracy_by_arm(league, "uniform", -1) == pytest.approx([0.7, 0.5])
    assert np.isnan(series.accuracy_by_arm(league, "nobody", -1)).all()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gcd/1", "gcd/2", "lcm/1"], {"gcd": [0, 1], "lcm": [2]}),
        (["a/b/1", "a/b/2"], {"a/b": [0, 1]}),
        (["gcd/1", "lcm"], None),
        (["gcd/1", "lcm/1"], None),
        (["gsm8k"], None),
    ],
)
def test_families_are_read_from_names(names: list[str], expected: dict[str, list[int]] | None) -> None:
    assert series.families(names) == expected


def test_a_heat_map_is_deepest_where_most_was_taught() -> None:
    league = league_of(([0, 1], [0, 1]), step=[1, 2], share=[[1.0, 0.0], [0.5, 0.5]])
    taught = series.taught(league, "uniform", 2)
    assert taught is not None
    panel = figures.heat_panel(taught, league, None, full=1.0)
    cells = {(round(x), round(y)): mark.opacity for mark in panel.marks if isinstance(mark, Cells) for x, y, _, _ in mark.cells}
    left, middle = 104, 104 + 146
    assert cells == {(left, 4): 1.0, (middle, 4): pytest.approx(0.53), (middle, 20): pytest.approx(0.53)}


def test_arms_beyond_a_hundred_share_lines() -> None:
    lines = figures.heat_lines([f"t{index}" for index in range(250)], None)
    assert len(lines) == figures.MOST_LINES
    assert sorted(arm for line in lines for arm in line) == list(range(250))


def test_a_lollipop_stands_where_the_accuracy_is() -> None:
    league = check_league(make_league(seeds=2))
    plates = draw(league)
    look = plates.look
    before_A = series.accuracy_by_arm(league, None, 0)
    after = {"sec": series.accuracy_by_arm(league, "sec", -1)}
    panel = figures.family_panel([0, 1, 2, 3], league, before_A, after, look)
    dots = [mark for mark in panel.marks if isinstance(mark, Dot)]
    assert [150 - dot.y for dot in dots] == pytest.approx(140 * after["sec"][:4])
    assert dots[0].tip == f"chain_sum/1\nsec: {before_A[0]:.3f} → {after['sec'][0]:.3f}"


def test_rows_of_one_method_share_a_hue_and_differ_in_dash() -> None:
    league = make_league(seeds=1, evaluations=2, steps=4)
    look = figures.styles(league, ranked(league))
    assert look["uniform"].colour == look["uniform@odf"].colour == "baseline"
    assert look["odf"].colour == look["odf@updates"].colour
    assert len({look[name].colour for name in ("uniform", "sec", "dump", "odf")}) == 4
    assert len({look[name].dash for name in ("odf", "odf@updates", "uniform@odf")}) == 3
    assert sorted(style.row for style in look.values()) == list(range(6))


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_few_round_and_inside(low: float, width: float, most: int) -> None:
    high = low + width
    values = figures.ticks(low, high, most)
    if high <= low or not values:
        return
    step = width / most
    assert len(values) <= most + 1
    assert all(low - 1e-6 * step <= value <= high + 1e-6 * step for value in values) or width / abs(low or 1) < 1e-9


def test_tick_labels() -> None:
    assert figures.ticks(0, 22272, 5) == [0, 5000, 10000, 15000, 20000]
    assert figures.ticks(-0.05, 0.05, 5) == [-0.04, -0.02, 0, 0.02, 0.04]
    assert figures.ticks(3, 3) == [3]
    assert [figures.compact(value) for value in (0, 0.25, 400, 5000, 12500, 2.5e6)] == ["0", "0.25", "400", "5k", "12.5k", "2.5M"]


def test_the_target_line_is_drawn_where_it_belongs() -> None:
    league = check_league(make_league(seeds=2))
    panel = draw(league).curves["rollouts"]
    numbers = [float(number) for number in panel.attributes["data-frame"].split()]
    top, bottom, low, high = numbers[1], numbers[3], numbers[6], numbers[7]
    label = next(mark for mark in panel.marks if isinstance(mark, Text) and mark.text == "target 0.45")
    assert label.y + 5 == pytest.approx(bottom - (0.45 - low) / (high - low) * (bottom - top), abs=0.1)


def test_long_labels_are_cut_with_an_ellipsis() -> None:
    assert shortened("short", 100) == "short"
    assert shortened("x" * 100, 66) == "x" * 9 + "…"


# --- colours


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "page"), [(LIGHT, report.PAGE_LIGHT), (DARK, report.PAGE_DARK)])
def test_contrast_suffices_in_both_themes(theme: dict[str, str], page: dict[str, str]) -> None:
    for ground in (page["page"], page["sunk"]):
        assert contrast(theme["ink"], ground) > 7
        assert contrast(theme["muted"], ground) > 4.5
    for role in ("baseline", "heat", *(f"series-{hue}" for hue in range(6))):
        assert contrast(theme[role], page["page"]) >= 3, role
    for verdict in ("holds", "reversed", "plain", "few"):
        assert contrast(page[f"{verdict}-ink"], page[verdict]) > 4.5
    assert set(LIGHT) == set(DARK)
    assert set(report.PAGE_LIGHT) == set(report.PAGE_DARK)


def test_every_colour_the_page_uses_is_defined(usual: str) -> None:
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", usual))
    local = {"badge", "badge-ink", "part", "bar"}
    assert used - local <= set(LIGHT) | set(report.PAGE_LIGHT)


def test_supervised_training_is_drawn_against_updates() -> None:
    league = check_league(DEGENERATE["supervised"])
    plates = draw(league)
    assert set(plates.curves) == {"step", "seconds"}
    assert plates.numbers["curves"]["step"][0]["x"][-1] == 240
    text = Page(report.report_html(league, plates)).words
    assert "Against updates" in text
    assert "Against rollouts" not in text


def test_further_comparisons_stand_below_the_table(usual: str) -> None:
    assert "odf against uniform@odf: teaches worse than it: −0.069" in Page(usual).words
    assert "Further comparisons" not in page_of(DEGENERATE["one seed"] | {"notes": []})


# --- the answers themselves


def test_diagnostics_have_a_panel_only_where_there_are_some(usual: str) -> None:
    assert "The answers themselves" not in Page(usual).words
    plain, league = make_league(), make_league(diagnosed=True)
    assert "answers" not in sheets(plain, draw(plain))
    words = Page(page_of(league)).words
    for title in ("Mean length, tokens", "Cut off at the limit", "pass@k after training", "Shows subgoal setting", "pass@4"):
        assert title in words
    assert "diagnostics" not in json.dumps(report._summary(check_league(league), with_curves=True))
    assert len(draw(check_league(league)).answers) == len(answers.PANELS) + 1


def test_growing_into_the_limit_is_warned_of_row_by_row() -> None:
    league = make_league(diagnosed=True)
    warned = answers.warnings(league)
    assert [sentence.split(":")[0] for sentence in warned] == [display_name(row) for row in league["rows"] if row["name"] != "uniform"]
    assert "from 10 to 14 tokens" in warned[0]
    assert warned[0] in Page(page_of(league)).words
    assert answers.warnings(make_league()) == []


def test_mean_diagnostics_are_over_seeds_and_flat() -> None:
    league = make_league(diagnosed=True, seeds=2, studied=STUDIED[:2])
    for cell in league["cells"]:
        cell["curve"]["diagnostics"][-1] = {"clip_ratio": 0.2 if cell["seed"] else None, "pass_at_k": {"2": 0.1 + 0.2 * cell["seed"]}}
    found = series.mean_diagnostics(league, "sec", -1)
    assert found == {"clip_ratio": pytest.approx(0.2), "pass_at_k.2": pytest.approx(0.2)}
    curve = series.mean_curve(league, "sec", "step", None, "clip_ratio")
    assert curve is not None
    assert curve.low_X is None
    assert series.mean_curve(league, "sec", "step", None, "format_rates") is None


def test_diagnostics_of_another_length_are_refused() -> None:
    league = make_league(diagnosed=True)
    league["cells"][0]["curve"]["diagnostics"].pop()
    with pytest.raises(TutelageError, match="differ in length"):
        check_league(league)
