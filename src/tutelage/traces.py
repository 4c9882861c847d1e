"""What a curriculum over a space proposed, what came back, and when: a JSON Lines file, appended as it happens, without pickle.

    curriculum.log_to("trace.jsonl")              # every event from here on
    trace = read_trace("trace.jsonl")             # trace.point_MD, trace.reward_M, trace.fits ...

The first line names the curriculum, its settings and its space; each further line is one event with its clock time ("time", seconds since
1970):

    {"event": "proposed", "points": [[...], ...]}                      one call of `propose`
    {"event": "observed", "points", "reward", "solved", "step"}        one lesson that came back, attempts as columns
    {"event": "answered", "points", "reward", "solved", "signals"}     the answer to `wants`
    {"event": "fitted", "episode", "mean", "cov"}                      a mixture teacher's new mixture
    {"event": "resumed", "kept": n}                                    only the first n events before it still count

Numbers are written so that they read back to the bit. A run that is resumed from an earlier state takes back what was logged after that
state by a line that says so: nothing is deleted, and the reader leaves out what no longer counts. Array suffixes: `M` proposals, `D`
parameters.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import Tally, TutelageError, Warned
from tutelage.files import open_lines
from tutelage.spaces import TaskSpace

Float = NDArray[np.float64]

VERSION = 1


class TraceWriter:
    """Appends the events of one curriculum to `path` (suffix .jsonl).

    identity: what the first line holds beside the version; a file that begins otherwise is another run's, and raises. events: how many
    events count so far. The file is touched with the first event. A file that has events already is continued only by a curriculum that
    was restored from a state (see `resume`); a fresh one raises, for it would bury the run before.
    """

    def __init__(self, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".jsonl":
            raise TutelageError(f"{self.path}: a curriculum's trace is written as JSON Lines; give it the suffix .jsonl.")
        self.events = 0
        self._head = {"trace": VERSION, **identity}
        self._resumes = False
        self._file: BinaryIO | None = None

    def resume(self, events: int) -> None:
        """Go on from a state that was saved after this many events."""
        self.events, self._resumes = int(events), True
        if self._file is not None:
            self.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event and hand it to the system before returning. Arrays become lists, NaN null; None is left out."""
        row = {
            "event": event,
            "time": round(time.time(), 3),
            **{name: _plain(value) for name, value in fields.items() if value is not None},
        }
        try:
            if self._file is None:
                self._file = self._opened()
            self._append(self._file, row)
        except OSError as error:
            raise TutelageError(f"Cannot write the trace {self.path}: {error.strerror or error}. The events before are kept.") from error
        self.events += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, file: BinaryIO, row: dict[str, Any]) -> None:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()

    def _opened(self) -> BinaryIO:
        before = _Reader(self.path) if self.path.exists() and self.path.stat().st_size else None
        head = before.head if before else None
        if head is not None and head != json.loads(json.dumps(self._head)):
            raise TutelageError(
                f"{self.path} is the trace of another run: it begins with {str(head)[:200]}, this one with {str(self._head)[:200]}. "
                "Choose another file."
            )
        found = len(before.events) if before else 0
        if found and not self._resumes:
            raise TutelageError(
                f"{self.path} holds {found} events of an earlier run, which this one would continue from its beginning. Restore the "
                "curriculum's state first to resume that run, or choose another file."
            )
        file, cut = open_lines(self.path)
        if head is None:
            self._append(file, self._head)
        if self._resumes and (found != self.events or cut):
            row = {"event": "resumed", "time": round(time.time(), 3), "kept": min(found, self.events)}
            self._append(file, row | {"lost": max(0, self.events - found), "cut": int(cut > 0)})
            self.events = min(found, self.events)
        self._resumes = False
        return file


@dataclass(frozen=True)
class CurriculumTrace:
    """A trace as columns, one row per proposal, in the order of proposal.

    proposed_M, returned_M: clock times, the latter NaN while open. reward_M, solved_M: the mean over a point's attempts as the trainer
    gave it (before `reward_range`), NaN where open or not given. step_M: the trainer's step, -1 where open. answers, fits: the events
    "answered" and "fitted", their lists as arrays. warnings: what was cut off, lost or taken back, with counts.
    """

    curriculum: str
    config: dict[str, Any]
    space: TaskSpace
    point_MD: Float
    proposed_M: Float
    returned_M: Float
    reward_M: Float
    solved_M: Float
    step_M: NDArray[np.int64]
    answers: tuple[dict[str, Any], ...]
    fits: tuple[dict[str, Any], ...]
    warnings: tuple[Warned, ...]

    def __len__(self) -> int:
        return len(self.point_MD)


def read_trace(path: str | os.PathLike[str]) -> CurriculumTrace:
    """Read a trace; a last line that was cut off is left out and counted in `warnings`, other damage raises `TutelageError`."""
    reader = _Reader(path)
    if reader.head is None:
        raise TutelageError(f"{path} holds no whole line; expected the trace of a curriculum (see `Curriculum.log_to`).")
    try:
        box = reader.head["space"]
        space = TaskSpace(box["low"], box["high"], names=box["names"])
        columns = _columns(reader.events, space)
        name, config = reader.head["curriculum"], reader.head["config"]
    except (KeyError, TypeError) as error:
        raise TutelageError(f"{path} is not a whole trace of a curriculum: {type(error).__name__}: {error}.") from error
    parts = {what: tuple(_arrays(row) for row in reader.events if row["event"] == what) for what in ("answered", "fitted")}
    return CurriculumTrace(name, config, space, **columns, answers=parts["answered"], fits=parts["fitted"], warnings=reader.tally.warnings)


def _columns(events: list[dict[str, Any]], space: TaskSpace) -> dict[str, Any]:
    """The columns of a trace. An outcome belongs to the earliest open proposal of its point."""
    points: list[Any] = []
    open_at: dict[bytes, deque[int]] = {}
    rows: list[list[float]] = []
    for event in events:
        if event["event"] == "proposed":
            for point_D in np.asarray(event["points"], dtype=np.float64):
                open_at.setdefault(point_D.tobytes(), deque()).append(len(points))
                points.append(point_D)
                rows.append([event["time"], np.nan, np.nan, np.nan, -1])
        elif event["event"] == "observed":
            reward_N, solved_N = (_means(event.get(name), len(event["points"])) for name in ("reward", "solved"))
            for row, point_D in enumerate(np.asarray(event["points"], dtype=np.float64)):
                waiting = open_at.get(point_D.tobytes())
                if waiting:
                    rows[waiting.popleft()][1:] = [event["time"], reward_N[row], solved_N[row], event["step"]]
    table_M5 = np.array(rows, dtype=np.float64).reshape(-1, 5)
    proposed_M, returned_M, reward_M, solved_M, step_M = table_M5.T
    return {
        "point_MD": np.array(points, dtype=np.float64).reshape(-1, space.dimensions),
        "proposed_M": proposed_M,
        "returned_M": returned_M,
        "reward_M": reward_M,
        "solved_M": solved_M,
        "step_M": step_M.astype(np.int64),
    }


class _Reader:
    """The first line, the events that still count, and a tally of what does not."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.head: dict[str, Any] | None = None
        self.events: list[dict[str, Any]] = []
        self.tally = Tally()
        try:
            with Path(path).open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    self._line(raw, f"{path}, line {number}")
        except OSError as error:
            raise TutelageError(f"The trace {path} cannot be read: {error.strerror or error}.") from error

    def _line(self, raw: bytes, where: str) -> None:
        if not raw.endswith(b"\n"):
            self.tally.add("last lines that were cut off and left out (a run was killed, or still writes)", where)
            return
        try:
            row = json.loads(raw)
            fault = None if isinstance(row, dict) and ("event" in row or "trace" in row) else "it is no event of a curriculum"
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            fault = str(error)
        if fault:
            raise TutelageError(f"{where} cannot be read: {fault}. A trace holds one JSON object per line; mend or drop the line.")
        if self.head is None:
            if row.get("trace") != VERSION:
                raise TutelageError(
                    f"{where} begins {str(row)[:80]}; this version of tutelage reads traces that begin {{'trace': {VERSION}."
                )
            self.head = row
        elif row["event"] == "resumed":
            self._resumed(row, where)
        else:
            self.events.append(row)

    def _resumed(self, row: dict[str, Any], where: str) -> None:
        taken_back = len(self.events) - row["kept"]
        counts = {
            "events after a state that the run was resumed from; they were lived again": taken_back,
            "events that the state knew of and the file had lost": row.get("lost", 0),
            "last lines that were cut off and left out (a run was killed, or still writes)": row.get("cut", 0),
        }
        for what, count in counts.items():
            if count > 0:
                self.tally.add(what, where, count)
        del self.events[row["kept"] :]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.where(np.isfinite(value), value, None).tolist()  # type: ignore[call-overload]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _arrays(row: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}


def _means(value_NG: Any, rows: int) -> Float:
    """Row means of what may be None; NaN where nothing was given."""
    return np.full(rows, np.nan) if value_NG is None else np.asarray(value_NG, dtype=np.float64).reshape(rows, -1).mean(axis=1)
