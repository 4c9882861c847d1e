"""What a teacher that intervenes is shown: the groups of a lesson, after the reward and before the advantage.

A teacher's `intervene(groups) -> groups` may have further attempts made, under other prompts, with `groups.ask`, and puts attempts of those
in the place of the student's own by writing their numbers into `guided_NG`. The engine does the rest: an attempt that was put in belongs to
the group's own prompt from then on, with its log-probabilities, its advantage and all counts.

Array suffixes: `N` groups of the lesson, `G` attempts each, `M` groups asked about, `K` attempts each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Ratio = Literal["on_policy", "importance", "none"]
OWN = -1
"""The entry of `guided_NG` for the student's own attempt."""


@dataclass(frozen=True)
class Attempts:
    """Judged attempts. solved_MK: the judgement in [0, 1], NaN where unscorable. reward_MK: what is optimised. length_MK: tokens.
    answers: the answers themselves, M lists of K, as text or as tokens."""

    solved_MK: Float
    reward_MK: Float
    length_MK: Float
    answers: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Groups:
    """The attempts of one lesson.

    tasks: the N tasks as mappings of column names to values, `prompt` among them. solved_NG, reward_NG: of the student's attempts; in what
    a teacher returns, of the mixed group. lesson: how many came before (all processes agree on it). ask: makes `attempts` for each of the
    groups `index_M` under `prompts`, in the same order, judged as their own; every process asks for the same.

    What a teacher returns: guided_NG, the attempt that stands in each place: `OWN`, or its number among all that were asked for (the j-th
    attempt of the i-th group asked about is i K + j; further askings go on counting). ratio: what the loss divides an attempt that was put
    in by, see `tutelage.teachers.egsr`. advantage_cap: upper bound of its advantage. expert: by group number, the text that its
    likelihood is compared with. metrics: logged as `teacher/<name>`.
    """

    tasks: Sequence[Mapping[str, Any]]
    solved_NG: Float
    reward_NG: Float
    lesson: int
    ask: Callable[[NDArray[np.int64], Sequence[Any], int], Attempts]
    guided_NG: NDArray[np.int64]
    ratio: Ratio = "on_policy"
    advantage_cap: float | None = None
    expert: Mapping[int, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tasks: Sequence[Mapping[str, Any]],
        solved_NG: Float,
        reward_NG: Float,
        *,
        lesson: int,
        ask: Callable[[NDArray[np.int64], Sequence[Any], int], Attempts],
    ) -> Groups:
        """The groups as the student made them."""
        return cls(tasks, solved_NG, reward_NG, lesson, ask, np.full(reward_NG.shape, OWN, dtype=np.int64))
