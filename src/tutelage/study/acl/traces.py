"""What a teacher proposed when, and what came back: a table for results, and the whole trace as an .npz without pickle."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.files import atomic_write
from tutelage.spaces import TaskSpace
from tutelage.study.acl.profiles import Lessons

Float = NDArray[np.float64]

COLUMNS, BINS = 10, 10


def proposed(space: TaskSpace, point_ED: Float, return_E: Float) -> dict[str, Any]:
    """Over `COLUMNS` equal stretches of the episodes: how many proposals fell in each of `BINS` slices of each parameter's range, as
    `count[parameter][column][bin]`, and the mean return, as `returned[column]`. `until` are the stretches' last episodes.
    """
    edges = np.linspace(0, len(return_E), min(COLUMNS, max(len(return_E), 1)) + 1).round().astype(int)
    share_ED = (point_ED - space.low_D) / space.range_D
    bin_ED = np.minimum((share_ED * BINS).astype(int), BINS - 1)
    stretches = [slice(a, b) for a, b in itertools.pairwise(edges)]
    count = [[np.bincount(bin_ED[part, d], minlength=BINS).tolist() for part in stretches] for d in range(space.dimensions)]
    returned = [round(float(return_E[part].mean()), 4) if part.stop > part.start else None for part in stretches]
    ranges = [[float(low), float(high)] for low, high in zip(space.low_D, space.high_D, strict=True)]
    return {"names": list(space.names), "range": ranges, "until": edges[1:].tolist(), "count": count, "returned": returned}


def write_trace(path: Path, space: TaskSpace, lessons: Lessons) -> None:
    """Every proposal and its return, in order, as 32-bit floats: `point_ED`, `return_E`, and the space's `low_D`, `high_D`."""
    buffer = io.BytesIO()
    arrays = {"point_ED": lessons.point_ED.astype(np.float32), "return_E": lessons.return_E.astype(np.float32)}
    np.savez_compressed(buffer, allow_pickle=False, low_D=space.low_D, high_D=space.high_D, **arrays)
    atomic_write(path, buffer.getvalue())
