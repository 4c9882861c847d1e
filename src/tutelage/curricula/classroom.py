"""What earlier students leave behind: traces of their curricula, niches distilled from them, and a classroom on disk.

Source: Portelas, Romac, Hofmann, Oudeyer, "Meta automatic curriculum learning" (arXiv 2011.08463), the history that AGAIN draws on.

    distil: of each fit of a run's mixture, the components with mean ALP > 0.2, and the mean of the last 50 returns that tasks of these
            components brought before the next fit; fits without either are dropped
    expert: of the k runs whose test scores (knowledge components, KC) at the same epoch are nearest, the one that ended best

A classroom is a directory with one file per run, `<hash>.npz`, without pickle (see `tutelage.state`), which `Classroom.add` lets grow.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.spaces import TaskSpace
from tutelage.state import load_state, save_state

Float = NDArray[np.float64]
Int = NDArray[np.int64]

VERSION = 1


@dataclass(frozen=True)
class Fit:
    """A mixture over [task, ALP], fitted after `episode` episodes: means (K, D + 1), covariances (K, D + 1, D + 1)."""

    episode: int
    mean_KQ: Float
    cov_KQQ: Float


@dataclass(frozen=True)
class Niche:
    """The components of one fit that promised progress, and the mean return that their tasks brought."""

    mean_KQ: Float
    cov_KQQ: Float
    target: float


@dataclass(frozen=True)
class Trace:
    """One student's curriculum, as its teacher recorded it.

    test_TD: the test tasks. kc_ET: their returns at E test epochs. fit_every: episodes between fits. reward_M, origin_M: of each episode
    its return and the component of the latest fit that its task came from, -1 for none. Returns are as the teacher maps them.
    """

    test_TD: Float
    kc_ET: Float
    fit_every: int
    fits: tuple[Fit, ...]
    reward_M: Float
    origin_M: Int


def distil(trace: Trace, *, least_progress: float = 0.2, last: int = 50) -> list[Niche]:
    """The niches of a run, in their order: components with a mean ALP above `least_progress`, target the mean of the `last` returns.

    Departure: a fit whose components brought no return is dropped (the release gives it the target NaN, which nothing ever reaches).
    """
    niches = []
    for fit in trace.fits:
        kept = np.flatnonzero(fit.mean_KQ[:, -1] > least_progress)
        window = slice(fit.episode, fit.episode + trace.fit_every)
        reward_M = trace.reward_M[window][np.isin(trace.origin_M[window], kept)]
        if len(reward_M):
            niches.append(Niche(fit.mean_KQ[kept], fit.cov_KQQ[kept], float(reward_M[-last:].mean())))
    return niches


class Classroom:
    """The runs of earlier students in one directory; all of one space, one set of test tasks and one range of returns.

    Opening it reads every run. A file of another version, space, test set or range, or a damaged one, raises `TutelageError` and names it.
    """

    def __init__(self, path: str | os.PathLike[str], space: TaskSpace, test_TD: Float, *, reward_range: list[float] | None = None) -> None:
        self.path, self.test_TD = Path(path), test_TD
        bounds = [space.low_D.tolist(), space.high_D.tolist()]
        self._identity = {"classroom": VERSION, "space": bounds, "tests": test_TD.tolist(), "reward_range": reward_range}
        if self.path.exists() and not self.path.is_dir():
            raise TutelageError(f"The classroom {self.path} is a file; expected a directory (it is made where there is none).")
        self.traces = {file.stem: self._read(file) for file in sorted(self.path.glob("*.npz"))}

    def __len__(self) -> int:
        return len(self.traces)

    def _read(self, file: Path) -> Trace:
        state = load_state(file)
        for key, mine in self._identity.items():
            if type(state.get(key)) is not type(mine) or state[key] != mine:
                raise TutelageError(
                    f"{file} cannot serve in this classroom: its {key} is {str(state.get(key))[:200]}, expected {str(mine)[:200]}. A "
                    "classroom holds runs of one version of the format, one space, one set of test tasks and one reward_range; choose "
                    "another directory."
                )
        try:
            fits = tuple(Fit(int(f["episode"]), f["mean_KQ"], f["cov_KQQ"]) for f in state["fits"])
            return Trace(self.test_TD, state["kc_ET"], int(state["fit_every"]), fits, state["reward_M"], state["origin_M"])
        except (KeyError, TypeError) as error:
            raise TutelageError(f"{file} is not a whole run of a classroom: {type(error).__name__}: {error}. Remove it.") from error

    def add(self, trace: Trace, *, improved: bool = True) -> str | None:
        """Keep a run for later students; returns its name, or None where it is not worth keeping.

        Kept is what leaves a niche and ended no worse than it began (sums of the last and the first test epoch); improved: False leaves
        the latter out (the source filters its toy students so, and keeps all of its walkers). The same run again changes nothing.
        """
        if not np.array_equal(trace.test_TD, self.test_TD):
            raise TutelageError(f"This run was tested on other tasks than the classroom {self.path}; it was not added.")
        worse = improved and len(trace.kc_ET) and trace.kc_ET[-1].sum() < trace.kc_ET[0].sum()
        if not len(trace.kc_ET) or worse or not distil(trace):
            return None
        digest = hashlib.blake2b(digest_size=12)
        for array in (trace.kc_ET, trace.reward_M, trace.origin_M):
            digest.update(np.ascontiguousarray(array).tobytes())
        fits = [{"episode": f.episode, "mean_KQ": f.mean_KQ, "cov_KQQ": f.cov_KQQ} for f in trace.fits]
        state: dict[str, Any] = {"kc_ET": trace.kc_ET, "fit_every": trace.fit_every, "fits": fits}
        state |= {"reward_M": trace.reward_M, "origin_M": trace.origin_M, **self._identity}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TutelageError(f"The classroom {self.path} cannot be made: {error}.") from error
        name = digest.hexdigest()
        save_state(self.path / f"{name}.npz", state)
        self.traces = dict(sorted({**self.traces, name: trace}.items()))
        return name

    def nearest(self, kc_T: Float, epoch: int, k: int, *, among: list[str] | None = None) -> list[tuple[str, float]]:
        """The k runs with the least root mean square difference of test scores at `epoch` (from 1), nearest first, with that distance.

        All of them where there are fewer. among: the names that count; one that is missing raises.
        """
        names = list(self.traces) if among is None else among
        missing = [name for name in names if name not in self.traces]
        if missing:
            raise TutelageError(
                f"The classroom {self.path} no longer has the run {missing[0]}, which was there when this curriculum began. Put the file "
                "back."
            )
        known = [name for name in names if len(self.traces[name].kc_ET) >= epoch]
        distances = [(name, float(np.sqrt(np.mean((self.traces[name].kc_ET[epoch - 1] - kc_T) ** 2)))) for name in known]
        return sorted(distances, key=lambda pair: pair[1])[:k]

    def best(self, names: list[str]) -> str:
        """The run with the largest sum of test scores at its last epoch."""
        return max(names, key=lambda name: float(self.traces[name].kc_ET[-1].sum()))
