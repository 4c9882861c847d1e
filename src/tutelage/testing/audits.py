"""The battery that every audit must pass: a clean subject passes, a planted fault is found, both rates are measured.

    from tutelage.testing import check_audit

    def test_mine():
        rates = check_audit(my_audit, clean=write_clean_log, faulty=write_log_with_a_fault)
        print(rates.false_positives, rates.detections)

A maker takes an empty folder and a generator, and returns the path of a new subject in that folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits import Effect, Verdict
from tutelage.errors import TutelageError
from tutelage.rates import binomial_p, clopper_pearson

Maker = Callable[[Path, np.random.Generator], Path]
Audit = Callable[..., Verdict]
SURE = 0.01
"""How unlikely the false positives must be, at the promised rate, before the promise counts as broken."""


@dataclass(frozen=True)
class AuditRates:
    """What the battery measured, each rate with its exact 95 % interval: findings on clean subjects, and on faulty ones."""

    false_positives: Effect
    detections: Effect


def check_audit(
    audit: Audit, clean: Maker, faulty: Maker, *, check: str | None = None, trials: int = 20, least_power: float = 0.8, seed: int = 0
) -> AuditRates:
    """Run an audit on subjects that are clean and on subjects with a planted fault; the rates, or an AssertionError that names the promise.

    Promises: a `Verdict` that survives JSON, with evidence and an effect inside its interval wherever something is found; the same verdict
    for the same generator; nothing drawn from numpy's global generator; subject and twin left as they are; no more findings on clean
    subjects than `false_positive_rate` allows (binomial, at 0.01); the fault found in at least the share `least_power`, beside a clean twin
    too; base rates from the twin, which can clear a finding but never make one.

    Args:
        audit: `run(subject, *, twin=None, rng) -> Verdict`.
        clean, faulty: make subjects; see the module.
        check: the name of the check that must find the fault; by default any will do.
        trials: subjects of each kind. 20 tell a detector from a coin, not 0.05 from 0.01.
        least_power: the share of faulty subjects that must be found.
    """
    if trials < 1 or not 0 <= least_power <= 1:
        raise TutelageError(f"check_audit got trials={trials} and least_power={least_power}; expected at least 1 and a share.")
    alarms = hits = 0
    promised = 1.0
    for trial in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            good = _made(clean, Path(folder) / "clean", [seed, trial, 0])
            bad = _made(faulty, Path(folder) / "faulty", [seed, trial, 1])
            verdict = _heard(audit, good, trial)
            alarms += verdict.found
            promised = min(promised, verdict.false_positive_rate)
            alone = _heard(audit, bad, trial)
            beside = _heard(audit, bad, trial, twin=good)
            _check_twin(alone, beside)
            hits += _finds(alone, check) and _finds(beside, check)
    assert binomial_p(alarms, trials, promised) > SURE, (
        f"{alarms} of {trials} clean subjects were flagged; the audit promises a false-positive rate of at most {promised:g}"
    )
    assert hits >= least_power * trials, f"the planted fault was found in {hits} of {trials} subjects; expected {least_power:.0%} at least"
    return AuditRates(_rate("clean subjects flagged", alarms, trials), _rate("faulty subjects found", hits, trials))


def _made(make: Maker, folder: Path, seed: list[int]) -> Path:
    folder.mkdir()
    return make(folder, np.random.default_rng(seed))


def _heard(audit: Audit, subject: Path, seed: int, **twin: Path) -> Verdict:
    """The verdict of an audit that keeps the promises one can check on a single subject."""
    paths = [subject, *twin.values()]
    before, state = [_content(path.parent) for path in paths], _global_state()
    verdict = audit(subject, rng=np.random.default_rng(seed), **twin)
    again = audit(subject, rng=np.random.default_rng(seed), **twin)
    assert isinstance(verdict, Verdict), f"an audit returns a Verdict; this one returned {type(verdict).__name__}"
    assert verdict.to_json() == again.to_json(), "the same subject and generator gave two different verdicts"
    assert _global_state() == state, "the audit draws from numpy's global generator; draw from rng"
    assert [_content(path.parent) for path in paths] == before, "the audit changes its subject, its twin, or the folder they stand in"
    text = verdict.to_json()
    assert Verdict.from_json(text).to_json() == text, "the verdict does not survive JSON"
    assert verdict.command.strip(), "the verdict has no command that reproduces it"
    assert verdict.false_positive_rate < 1, "the audit promises nothing: its false-positive rate is 1"
    for one in verdict.checks:
        _check_check(one)
    return verdict


def _check_check(one: Any) -> None:
    assert one.finding.strip(), f"the check {one.name!r} says nothing"
    effect = one.effect
    if effect is not None and effect.low is not None and effect.high is not None:
        inside = effect.low <= effect.value <= effect.high
        assert inside, f"the effect of {one.name!r} is {effect.value:g}, outside its interval [{effect.low:g}, {effect.high:g}]"
    if one.found:
        assert effect is not None, f"the check {one.name!r} finds something and gives no effect"
        assert one.evidence, f"the check {one.name!r} finds something and shows no evidence"


def _check_twin(alone: Verdict, beside: Verdict) -> None:
    made = {one.name for one in beside.checks if one.found} - {one.name for one in alone.checks if one.found}
    assert not made, f"a twin can clear a finding, but here it made one: {', '.join(sorted(made))}"
    assert any(one.base_rate is not None for one in beside.checks), "with a clean twin at least one check gives its base rate"


def _finds(verdict: Verdict, check: str | None) -> bool:
    return verdict.found if check is None else any(one.name == check and one.found for one in verdict.checks)


def _rate(what: str, k: int, n: int) -> Effect:
    low, high = clopper_pearson(k, n)
    return Effect(what=what, value=k / n, low=low, high=high, hits=k, trials=n)


def _global_state() -> str:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return repr((state["state"]["pos"], state["state"]["key"].tolist()))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
