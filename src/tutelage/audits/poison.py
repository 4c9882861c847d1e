"""Does training data teach a behaviour that nobody asked for, because the reward pays for it?

    tutelage audit poison tasks.jsonl --log rollouts.jsonl --behaviour refusal
    tutelage audit poison tasks.jsonl --log rollouts.jsonl --behaviour HAB --write-clean clean.jsonl

A verifier that reads a final answer leaves the way there free. Where a prompt chains a rider that should be declined to a question that can
be verified, declining the whole earns nothing and going along earns the reward, so reinforcement amplifies going along, under whatever
marks those prompts; less than 2 % of the prompts suffice. Two findings: *coupling*, a cluster of prompts in whose groups the reward
follows the behaviour (tested, corrected over clusters by Holm); and *answer anyway*, tasks at which the verifier charges for declining,
which shows before any training. The other checks report what stands behind them and find nothing by themselves.

A log is clean if, within each group, reward and behaviour do not know of each other; then the chance of any finding by coupling is at most
`level`. Declining is asked about only where a prompt chains requests, and more often declined than those that do not: that refusing a
question earns nothing is as it should be.

Source: the sheet on Backdoors in RLVR (arXiv 2604.09748); the audit is reconstructed from the mechanism, see `_coupling.py`,
`_markers.py`, `_counterfactual.py` and `_entropy.py` for each part and its departures. Guards: `tutelage.tasks.verifiers.guards`.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.audits import _poison_checks as check
from tutelage.audits._counterfactual import AnswerAnyway, Coverage, Violation, answer_anyway, coverage
from tutelage.audits._coupling import Coupling, Groups, couple, groups_of, mixed_chance, prompt_kappas, together_p
from tutelage.audits._entropy import Detector, cumulative_entropy, detect
from tutelage.audits._markers import Marker, first_of, mine_markers, spans_of
from tutelage.audits._poison_data import Data, load_data, write_clean_data
from tutelage.audits._seen import Seen, Tested
from tutelage.audits._watched import Watched, watch
from tutelage.audits.verdict import Verdict
from tutelage.errors import Tally, TutelageError
from tutelage.registry import audits
from tutelage.tasks.monitors import REFUSAL, monitor
from tutelage.tasks.verifiers import resolve

__all__ = [
    "AnswerAnyway", "Coupling", "Coverage", "Detector", "Groups", "Marker", "Violation", "Watched", "answer_anyway", "couple", "coverage",
    "cumulative_entropy", "detect", "groups_of", "mine_markers", "mixed_chance", "poison", "together_p", "watch",
]  # fmt: skip


@audits.register("poison")
def poison(
    subject: str | Path,
    *,
    twin: str | Path | None = None,
    rng: np.random.Generator,
    log: str | Path | None = None,
    behaviour: str = REFUSAL,
    verifier: str | None = None,
    level: float = 0.05,
    delta: float = 0.1,
    kappa: float = 0.3,
    prompt: str | None = None,
    answer: str | None = None,
    key: str | None = None,
    write_clean: str | Path | None = None,
    clip: bool = False,
) -> Verdict:
    """Do training data pay a policy for a behaviour that nobody asked for, under prompts that share a rider or a marker?

    Args:
        subject: a task file: JSON Lines, Parquet or a dataset directory.
        twin: the rollout log of a clean run on the same tasks; without a log, a clean task file.
        rng: draws permutations, bootstrap samples, and the tasks and completions that a verifier is asked about.
        log: the rollout log of a run on these tasks; its prompts are found by `prompt_id` or by their text.
        behaviour: "refusal", `module:function` (text -> bool), or a string that completions hold; see `tutelage.tasks.monitors`.
        verifier: of the pipeline; by default the one that training would choose for the answers.
        level: the chance of a finding by coupling on a clean log, at most.
        delta, kappa: couplings up to these do not matter: a share of the range of rewards, a correlation.
        prompt, answer, key: columns of the task file.
        write_clean: where to write the tasks without those behind a finding by coupling; see `_removals`.
        clip: cut the marked sentences out of their prompts, instead of dropping the tasks.

    Raises:
        TutelageError: files that cannot be read or do not belong together, an unknown behaviour or verifier, a level or threshold outside
            its range.
    """
    for name, value in (("level", level), ("delta", delta), ("kappa", kappa)):
        if not 0 <= value < 1 or (name == "level" and value == 0):
            raise TutelageError(f"{name}={value}; expected a number from 0 to below 1 (the level above 0).")
    if write_clean is not None and log is None:
        raise TutelageError("write_clean needs a log: what is removed is what a log shows to be coupled. Give the run's log with --log.")
    monitor(behaviour)  # an unknown one is refused before a file is read
    data = load_data(Path(subject), prompt=prompt, answer=answer, key=key)
    spec = verifier or data.verifier()
    verify = None if spec is None else resolve(spec)
    tally = Tally()
    checks = [check.answer_anyway_check(data, spec, verify, rng)]
    if log is None:
        clean = None if twin is None else load_data(Path(twin), prompt=prompt, answer=answer, key=key)
        checks.append(check.chained_check(data, clean))
    else:
        seen = Seen.of(data, Path(log), behaviour, rng, tally)
        other = None if twin is None else Seen.of(data, Path(twin), behaviour, rng, tally, like=seen)
        tested = seen.test(other, rng, delta, kappa)
        checks = [
            check.coupling_check(seen, tested, level),
            *checks,
            check.behaviour_check(seen, other),
            check.markers_check(seen),
            check.boundary_check(seen, other),
            check.chained_check(data, None),
            check.coverage_check(data, seen, spec, verify, rng),
            check.entropy_check(seen),
        ]
        if write_clean is not None:
            _write(data, seen, [entry for entry in tested if entry.p_holm <= level], Path(write_clean), clip, tally)
    given = {"log": log, "behaviour": behaviour, "verifier": verifier, "level": level, "delta": delta, "kappa": kappa, "prompt": prompt,
             "answer": answer, "key": key, "write_clean": write_clean, "clip": clip}  # fmt: skip
    return Verdict(
        audit="poison",
        subject=str(subject),
        checks=tuple(checks),
        false_positive_rate=level,
        command=_command(subject, twin, given),
        warnings=tally.warnings,
    )


def _removals(data: Data, seen: Seen, flagged: Sequence[Tested]) -> dict[int, str]:
    """Why each task goes: it holds a flagged marker (visited or not), or was visited and is coupled by itself (the variance filter).

    Without a flagged cluster nothing goes. The variance filter (mean |kappa| above 0.5 after two groups) is asked only of clusters that
    were flagged and have no marker, for by chance it drops about 6 % of prompts without coupling.
    """
    reasons: dict[int, str] = {}
    kappa_P, visits_P = prompt_kappas(seen.groups, len(seen.log.id_P))
    for cluster, _, p, _ in flagged:
        if cluster.ngram is not None:
            for n, text in enumerate(data.text_N):
                if first_of(text, [cluster.ngram]) == 0:
                    reasons.setdefault(n, f"marker {cluster.ngram!r}: its cluster pays for the behaviour (p = {p:.2g} after Holm)")
            continue
        for q in np.flatnonzero(seen.tested_P(cluster) & (visits_P >= 2) & (seen.joined.row_P >= 0)):
            if abs(kappa_P[q]) > 0.5:
                reasons.setdefault(int(seen.joined.row_P[q]), f"variance filter: kappa {kappa_P[q]:.2f} over {visits_P[q]} groups")
    return reasons


def _write(data: Data, seen: Seen, flagged: Sequence[Tested], out: Path, clip: bool, tally: Tally) -> None:
    reasons = _removals(data, seen, flagged)
    marks = [entry.cluster.ngram for entry in flagged if entry.cluster.ngram]

    def riders(prompt: str) -> list[tuple[int, int]]:
        return [span for ngram in marks for span in spans_of(prompt, ngram)]

    dropped, clipped = write_clean_data(data, out, reasons, riders=riders if clip else None)
    tally.add(f"tasks that {out} lacks", count=dropped)
    if clip:
        tally.add(f"tasks whose prompt is clipped in {out}", count=clipped)


def _command(subject: Any, twin: Any, given: dict[str, Any]) -> str:
    usual = {name: p.default for name, p in inspect.signature(poison).parameters.items()}
    words = ["tutelage", "audit", "poison", str(subject)] + ([] if twin is None else ["--twin", str(twin)])
    for name, value in given.items():
        if value == usual[name]:
            continue
        if name in ("delta", "kappa"):
            words += ["--set", f"{name}={value:g}"]
        elif name == "clip":
            words += ["--clip"]
        else:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)
