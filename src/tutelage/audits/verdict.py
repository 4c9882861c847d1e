"""What an audit says: findings with their evidence, how large the effect is, what a clean twin shows, how often it would cry wolf.

An audit is a function `run(subject, *, twin=None, rng) -> Verdict`, registered in `tutelage.registry.audits`. The subject is a path: a
rollout log, a data set or a model directory. The twin is one of the same kind that is known to be clean; it gives base rates, and can clear
a finding but never make one. The generator is all the randomness an audit has.

A verdict consists of checks, one per question that was asked. What stands on the verdict itself (finding, severity, effect, evidence) is
that of its gravest check, so that a reader in a hurry and a script see the same thing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from tutelage.errors import TutelageError, Warned, unknown

SCHEMA = 1
Severity = Literal["none", "low", "medium", "high"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
STYLES = {"none": "green", "low": "yellow", "medium": "bold yellow", "high": "bold red"}
CUT = 160
"""Signs of a piece of evidence that the terminal shows; the JSON has all of it."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How large: a value with its 95 % interval (None where there is none), in words what it measures, and the counts behind a share.

    hits, trials: of a share, whole or effective counts; None of any other number.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    hits: float | None = None
    trials: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{interval}"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a check saw along something, for the page: one line of a panel.

    panel: what y is, the panel's title; curves of one panel are drawn together. name: of this line in the key. x_name: what x is, such as
    "step". x, y: points in the order of x; a y of None is a gap that is not drawn. low, high: the band around y, both or neither.
    """

    panel: str
    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    x_name: str = "step"
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None

    def __post_init__(self) -> None:
        given = [part for part in (self.y, self.low, self.high) if part is not None]
        if any(len(part) != len(self.x) for part in given) or (self.low is None) != (self.high is None):
            raise TutelageError(
                f"The curve {self.name!r} of {self.panel!r} has {len(self.x)} places and {[len(part) for part in given]} values; expected "
                "as many values as places, and both ends of the band or neither."
            )


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question of an audit and its answer.

    name: of the rule. finding: what was seen, as a sentence. severity: "none" where nothing was found. effect: None where it could not be
    measured, which `finding` explains. base_rate: the same number on the clean twin. p: of the test, before and after Holm's correction
    over the audit's checks; None where the check is no test, or could not be made. evidence: rows one can read, as mappings. curves: what
    the page draws of it.
    """

    name: str
    finding: str
    severity: Severity = "none"
    effect: Effect | None = None
    base_rate: float | None = None
    p: float | None = None
    p_holm: float | None = None
    evidence: tuple[Mapping[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise unknown("severity", str(self.severity), SEVERITIES)

    @property
    def found(self) -> bool:
        return self.severity != "none"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit says of a subject.

    audit, subject: what was asked, and of what. checks: at least one. false_positive_rate: the chance of any finding on a clean subject, as
    the audit promises it (its tests measure whether it keeps that). command: what reproduces the verdict. warnings: about the subject.
    """

    audit: str
    subject: str
    checks: tuple[Check, ...]
    false_positive_rate: float
    command: str
    warnings: tuple[Warned, ...] = ()

    def __post_init__(self) -> None:
        if not self.checks:
            raise TutelageError(f"The audit {self.audit!r} gave a verdict without checks; it must say what was asked. Give at least one.")
        if not 0 <= self.false_positive_rate <= 1:
            raise TutelageError(f"false_positive_rate={self.false_positive_rate}; expected a chance between 0 and 1.")

    @property
    def worst(self) -> Check:
        """The gravest check; of several, the one with the least p value, then the first."""
        return min(self.checks, key=lambda check: (-SEVERITIES.index(check.severity), 1.0 if check.p is None else check.p))

    @property
    def found(self) -> bool:
        return self.worst.found

    @property
    def finding(self) -> str:
        """The gravest finding; of a clean subject, that none was made."""
        if self.found:
            return self.worst.finding
        tested = sum(check.effect is not None for check in self.checks)
        return f"nothing found by {tested} of {len(self.checks)} checks" + (
            "" if tested == len(self.checks) else "; the others lacked data"
        )

    @property
    def severity(self) -> Severity:
        return self.worst.severity

    @property
    def effect(self) -> Effect | None:
        return self.worst.effect

    @property
    def base_rate(self) -> float | None:
        return self.worst.base_rate

    @property
    def evidence(self) -> tuple[Mapping[str, Any], ...]:
        return self.worst.evidence

    def to_json(self) -> str:
        """The verdict as JSON (RFC 8259: no NaN), with the headline's fields beside the checks they come from."""
        headline = {"schema": SCHEMA, "found": self.found, "finding": self.finding, "severity": self.severity}
        return json.dumps(headline | _plain(asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """The verdict that `to_json` wrote; anything else raises `TutelageError`."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise TutelageError(f"This is no verdict: {error}. Expected what `tutelage audit ... --json` wrote.") from None
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, dict) else type(value).__name__
            raise TutelageError(f"This is no verdict of schema {SCHEMA}: got {found!r}. Run the audit again with this version.")
        value = {name: part for name, part in value.items() if name not in ("schema", "found", "finding", "severity")}
        try:
            checks = tuple(_check(check) for check in value.pop("checks"))
            warnings = tuple(_made(Warned, warned) for warned in value.pop("warnings"))
        except (KeyError, TypeError) as error:
            raise TutelageError(f"The verdict is broken: {type(error).__name__}: {error}. Run the audit again.") from None
        return _made(cls, value | {"checks": checks, "warnings": warnings})


def _check(value: dict[str, Any]) -> Check:
    effect = value["effect"]
    read = {"effect": None if effect is None else _made(Effect, effect), "evidence": tuple(value["evidence"])}
    return _made(Check, value | read | {"curves": tuple(_curve(curve) for curve in value.get("curves", ()))})


def _curve(value: dict[str, Any]) -> Curve:
    return _made(Curve, {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()})


def _made(kind: type[T], value: dict[str, Any]) -> T:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in value:
        if name not in names:
            raise unknown(f"field of a {kind.__name__}:", name, names)
    try:
        return kind(**value)
    except TypeError as error:
        raise TutelageError(f"The {kind.__name__} is broken: {error}. Run the audit again.") from None


def _plain(value: Any) -> Any:
    """Values that JSON has: numbers of numpy become Python's, numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def render(verdict: Verdict, console: Any) -> None:
    """Print a verdict: the headline, a row per check, the evidence behind each finding, warnings, and the command."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(Text.assemble("\n", (f"audit {verdict.audit}", "bold"), f"  {verdict.subject}"))
    console.print(Text(verdict.finding, style=STYLES[verdict.severity]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim")
    for heading in ("check", "severity", "effect", "twin", "p (Holm)"):
        table.add_column(heading, justify="left" if heading in ("check", "severity") else "right", overflow="fold")
    for check in verdict.checks:
        effect, twin, p = (Text(_shown(x)) for x in (check.effect, check.base_rate, check.p_holm))
        table.add_row(Text(check.name), Text(check.severity, style=STYLES[check.severity]), effect, twin, p)
    console.print(table)
    for check in verdict.checks:
        console.print(Text.assemble((f"{check.name}: ", "bold"), check.finding))
        for row in check.evidence:
            console.print(Text("    " + "  ".join(f"{name}={_short(value)}" for name, value in row.items()), style="dim"))
    for warned in verdict.warnings:
        console.print(Text(f"warning: {warned}", style="yellow"))
    console.print(Text(f"false positives on a clean subject: at most {verdict.false_positive_rate:.3g}", style="dim"))
    console.print(Text(f"again: {verdict.command}", style="dim"))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _shown(value)
    return text if len(text) <= CUT else text[: CUT - 1] + "…"
