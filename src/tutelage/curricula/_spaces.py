"""The contract over a continuous space: `propose` gives points (N, D), `observe` takes their returns.

The same lesson as over a pool (see `_base`), with two differences. A point is known again by its float64 bytes, so every curriculum keeps
a ledger of the points it proposed and has not yet seen back; `observe` for anything else raises. And the rows of a lesson are learned in
the order in which they were proposed, whatever order they come back in, for the teachers of this kind learn episode by episode.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.errors import TutelageError
from tutelage.outcomes import Outcomes
from tutelage.pools import TaskPool
from tutelage.spaces import TaskSpace
from tutelage.traces import TraceWriter

Float = NDArray[np.float64]
Range = tuple[float, float] | None

LEDGER = 4096


class SpaceCurriculum(Curriculum):
    """Base of the curricula over a `TaskSpace`.

    space: the box of task parameters (a `TaskSpace` or a Gymnasium `Box`). seed: of the curriculum's own generator. config: the
    hyperparameters. reward_range: returns are clipped to it and mapped to [0, 1] before anything is learned; None takes them as they are.

    A subclass writes `_propose(n)`, points (n, D), and `_learn(points_ND, reward_N)`, the returns of points in the order of their proposal
    (attempts at the same point are averaged first). The ledger forgets all but the last 4,096 open proposals (more, if one call proposed
    more), so that abandoned episodes do not accumulate.
    """

    needs = frozenset({"point_ND", "reward_NG"})

    def __init__(self, space: TaskSpace, *, seed: int = 0, config: dict[str, Any] | None = None, reward_range: Range = None) -> None:
        self.space = TaskSpace.of(space)
        if reward_range is not None and not (np.isfinite(reward_range).all() and reward_range[0] < reward_range[1]):
            raise TutelageError(f"{self.name}: reward_range must be finite, low before high; got {tuple(reward_range)}.")
        self._begin(seed, {**(config or {}), "reward_range": None if reward_range is None else [float(r) for r in reward_range]})
        self.open_PD = np.zeros((0, self.space.dimensions))
        self.log: TraceWriter | None = None
        self._logged: int | None = None  # events in the trace of the run that a state was restored from

    @property
    def pool(self) -> TaskPool:  # type: ignore[override]
        """There is none: a trainer or a study that asks for it gets an error that says so."""
        raise TutelageError(
            f"The curriculum {self.name!r} teaches points of a TaskSpace; what was asked of it needs a curriculum over a TaskPool, such as "
            "'uniform' or 'sec'."
        )

    @property
    def asks(self) -> frozenset[str]:
        """What `wants` may ask for beside returns of proposed points: "tests", episodes of points that it names, and names of signals.

        A trainer that cannot answer one of them refuses the curriculum before it trains.
        """
        return frozenset()

    def log_to(self, path: str | os.PathLike[str]) -> None:
        """Append what is proposed and what comes back to a trace (see `tutelage.traces`), from now on; it goes on after a resume."""
        box = {"low": self.space.low_D.tolist(), "high": self.space.high_D.tolist(), "names": list(self.space.names)}
        identity = self._identity()
        self.log = TraceWriter(path, {"curriculum": identity["curriculum"], "config": identity["config"], "space": box})
        if self._logged is not None:
            self.log.resume(self._logged)

    def propose(self, n: int) -> Float:
        """Exactly `n` points of the space, float64 (n, D). Hand these very rows back to `Outcomes.of`."""
        if n < 1:
            raise TutelageError(f"propose(n) needs n of at least 1; got {n}.")
        points_ND = np.asarray(self._propose(int(n)), dtype=np.float64) + 0.0
        if points_ND.shape != (n, self.space.dimensions) or not self.space.contains(points_ND).all():
            raise TutelageError(f"{type(self).__name__} proposed an array {points_ND.shape} that is not {n} points of {self.space!r}.")
        self.open_PD = np.concatenate([self.open_PD, points_ND])[-max(LEDGER, n) :]
        self.lessons += 1
        if self.log is not None:
            self.log.write("proposed", points=points_ND)
        return points_ND

    def observe(self, outcomes: Outcomes, *, probe: bool = False) -> None:
        """Learn from a lesson. A point that was not proposed, or a return that is not finite, raises and changes nothing."""
        if probe:
            self._answer(outcomes)
            self._log("answered", outcomes)
            return
        self._check_columns(outcomes)
        if not len(outcomes):
            return
        assert outcomes.point_ND is not None
        points_ND = self.space.check(outcomes.point_ND, field="point_ND")
        reward_N = self._returns(outcomes)
        place_N = self._find(points_ND, reward_N)
        order_N = np.argsort(place_N)
        self.open_PD = np.delete(self.open_PD, place_N, axis=0)
        self._settle(place_N[order_N])
        self._log("observed", outcomes)
        self._learn(points_ND[order_N], reward_N[order_N])

    def _log(self, event: str, outcomes: Outcomes) -> None:
        if self.log is not None:
            signals = dict(outcomes.signals) or None
            columns = {"points": outcomes.point_ND, "reward": outcomes.reward_NG, "solved": outcomes.solved_NG, "signals": signals}
            self.log.write(event, step=outcomes.step, **columns)

    def _returns(self, outcomes: Outcomes) -> Float:
        """One finite return per point: the mean over its attempts, mapped by `reward_range`, shape (N,)."""
        if outcomes.reward_NG is None:  # a curriculum that declares no need of returns
            return np.zeros(len(outcomes))
        if not np.isfinite(outcomes.reward_NG).all():
            row = int(np.flatnonzero(~np.isfinite(outcomes.reward_NG).all(axis=1))[0])
            raise TutelageError(
                f"The curriculum {self.name!r} got reward_NG {outcomes.reward_NG[row].tolist()} in row {row}; returns must be finite. "
                "Leave an episode that could not be scored out of the lesson."
            )
        reward_N = outcomes.reward_NG.mean(axis=1)
        if self.config["reward_range"] is None:
            return reward_N
        low, high = self.config["reward_range"]
        return (np.clip(reward_N, low, high) - low) / (high - low)

    def _find(self, points_ND: Float, reward_N: Float) -> NDArray[np.int64]:
        """Places of points in the ledger; of equal points, the lowest return takes the earliest, so that no order of rows matters."""
        places: dict[bytes, deque[int]] = {}
        for place, point_D in enumerate(self.open_PD):
            places.setdefault(point_D.tobytes(), deque()).append(place)
        place_N = np.empty(len(points_ND), dtype=np.int64)
        for row in np.argsort(reward_N, kind="stable"):
            waiting = places.get(points_ND[row].tobytes())
            if not waiting:
                raise TutelageError(
                    f"point_ND row {row}, {points_ND[row].tolist()}, was never proposed by this curriculum {self.name!r}, or has been "
                    f"observed already; {len(self.open_PD)} proposals are open. Pass the float64 rows of `propose`, each once (attempts at "
                    "one point are columns); a cast to float32 and back makes another point."
                )
            place_N[row] = waiting.popleft()
        return place_N

    def _settle(self, place_N: NDArray[np.int64]) -> None:
        """Called before `_learn` with the places that its rows had in the ledger, for what a subclass keeps beside it."""

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        """Nothing to learn, by default."""

    def _answer(self, outcomes: Outcomes) -> None:
        """Learn from the answer to `wants`; its points stand in no ledger. By default nothing was asked."""
        raise TutelageError(f"The curriculum {self.name!r} has asked nothing: `wants()` is None, so leave observe(..., probe=True) out.")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.log is None else {"logged": self.log.events})

    def _deck_state(self) -> dict[str, Any]:
        return {"open_PD": self.open_PD.copy()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.open_PD = np.array(state["memory"]["open_PD"], dtype=np.float64)
        self._logged = state.get("logged")
        if self.log is not None and self._logged is not None:
            self.log.resume(self._logged)

    def _tasks(self) -> dict[str, str]:
        return {"space": self.space.fingerprint}
