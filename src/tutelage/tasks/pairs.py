"""Preference pairs from scored replies: which reply is preferred to which, in one fixed order.

    pairs = build_pairs(score_NG, replies=replies, gap=0.3, max_pairs=8)
    dataset = Dataset.from_list(pairs.rows(prompts, replies))             # prompt, chosen, rejected: TRL's preference format

What papers do, in these terms:

- Learning by Teaching (arXiv 2406.14629): `gap=0.3, max_pairs=8`; which eight the paper leaves open, here those of the largest gap.
- ARTE (arXiv 2406.19227), rationales: `max_pairs=1`, the best over the worst; where all scores of a task are equal there is no pair.
- Honest LLM (arXiv 2406.00380), threshold 6. First stage: `build_pairs(score_NG + 10 * honest_NG, may_win=honest_NG & (score_NG >= 6),
  may_lose=~honest_NG)`; second: `build_pairs(score_NG, may_win=honest_NG & (score_NG >= 6), may_lose=honest_NG)`; both with
  `max_pairs=6, disjoint=True`. (The 10 puts every honest reply above every other, since scores run from 1 to 10.)
- ReaderLM-v2 (arXiv 2503.01151), SPIN and TPAW: `build_pairs([[1, 0]] * N, replies=[[target, draft], ...], same="drop")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, unknown

Same = Literal["raise", "drop"]
Rows = Sequence[Sequence[Any]] | NDArray[Any]
"""One row per task, one entry per reply: an (N, G) array, or sequences of different lengths."""

Index = list[tuple[int, int]]
DECIMALS = 9
"""Gaps are compared after rounding to this many decimals, so that 0.8 − 0.5 is no larger than 0.3."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of replies of the same task, by task and, within it, from the largest gap down.

    Attributes:
        task_P: row of the task (P,).
        chosen_P, rejected_P: index of the preferred and of the other reply among the task's replies (P,).
        gap_P: how much higher the preferred one scored (P,), in the scores' unit.
        tasks: number of tasks the pairs were drawn from.
    """

    task_P: NDArray[np.int64]
    chosen_P: NDArray[np.int64]
    rejected_P: NDArray[np.int64]
    gap_P: NDArray[np.float64]
    tasks: int

    def __len__(self) -> int:
        return len(self.task_P)

    @property
    def unpaired(self) -> float:
        """The share of tasks that gave no pair; near 1, the scores do not tell replies apart."""
        return 1 - len(np.unique(self.task_P)) / self.tasks

    def rows(self, prompts: Sequence[Any], replies: Rows) -> list[dict[str, Any]]:
        """One `{"prompt", "chosen", "rejected"}` per pair, of prompts (N) and replies (N rows) in the order of the scores."""
        for name, given in (("prompts", prompts), ("replies", replies)):
            if len(given) != self.tasks:
                raise TutelageError(
                    f"The pairs are of {self.tasks} tasks, and {len(given)} {name} came in; expected one per task, in order."
                )
        triples = zip(self.task_P, self.chosen_P, self.rejected_P, strict=True)
        return [{"prompt": prompts[n], "chosen": replies[n][i], "rejected": replies[n][j]} for n, i, j in triples]


def build_pairs(
    scores: Rows,
    *,
    replies: Rows | None = None,
    gap: float = 0.0,
    max_pairs: int | None = None,
    disjoint: bool = False,
    may_win: Rows | None = None,
    may_lose: Rows | None = None,
    same: Same = "raise",
    min_pairs: int = 1,
) -> Pairs:
    """All pairs of replies to the same task whose scores differ by more than `gap`.

    Order within a task, which `max_pairs` and `disjoint` follow: the larger gap first, then the higher score of the preferred reply, then
    its lower index, then the other's lower index. Nothing is drawn at random. Gaps and scores are compared to nine decimals.

    Args:
        scores: one row of scores per task, higher is better; an (N, G) array, or rows of different lengths.
        replies: texts, token ids or messages in the same shape, to find pairs whose two sides are equal; None = not looked for.
        gap: least difference of scores, exclusive; 0 = any difference, and equal scores never make a pair.
        max_pairs: most pairs of one task; None = all.
        disjoint: use each reply in at most one pair, going down the order.
        may_win, may_lose: flags in the same shape, which replies may be preferred and which may be the other side; None = all.
        same: what to do with two equal replies that scored differently: `raise`, or `drop` the pair (before `max_pairs` counts).
        min_pairs: fewer pairs than this over all tasks raise; 0 = an empty result is fine.

    Raises:
        TutelageError: shapes that disagree, a task with fewer than two replies, a NaN score of a reply that may be used, two equal
            replies with different scores, fewer pairs than `min_pairs`, or a setting out of its range.
    """
    _check_settings(gap, max_pairs, same, min_pairs)
    flags = {"may_win": may_win, "may_lose": may_lose, "replies": replies}
    _check_shapes(scores, {name: rows for name, rows in flags.items() if rows is not None})
    found: list[tuple[int, int, int, float]] = []
    for n, row in enumerate(scores):
        score_G, win_G, lose_G = _scores(n, row), _flags(may_win, n, len(row)), _flags(may_lose, n, len(row))
        _check_scores(n, score_G, win_G | lose_G)
        candidates = _candidates(score_G, win_G, lose_G, gap)
        if replies is not None:
            candidates = _different(candidates, n, score_G, replies[n], same)
        found += [(n, i, j, float(score_G[i] - score_G[j])) for i, j in _first(candidates, max_pairs, disjoint)]
    if len(found) < min_pairs:
        raise TutelageError(
            f"{len(scores)} tasks gave {len(found)} pairs, and {min_pairs} are needed (min_pairs): too few replies to a task differ by "
            f"more than gap={gap:g}. Likely cause: the score does not tell replies apart, and training on such pairs would learn noise. "
            "Sample more replies per task, lower the gap, or loosen may_win and may_lose; min_pairs=0 accepts an empty result."
        )
    task_P, chosen_P, rejected_P = np.array([pair[:3] for pair in found], dtype=np.int64).reshape(-1, 3).T.copy()
    return Pairs(task_P, chosen_P, rejected_P, np.array([pair[3] for pair in found], dtype=np.float64), len(scores))


def _candidates(score_G: NDArray[np.float64], win_G: NDArray[np.bool_], lose_G: NDArray[np.bool_], gap: float) -> Index:
    """Pairs (preferred, other) that exceed the gap, in the order of `build_pairs`."""
    usable_G = np.where(win_G | lose_G, score_G, 0.0)  # a reply on neither side may have no score
    gap_GG = np.round(usable_G[:, None] - usable_G[None, :], DECIMALS)
    allowed_GG = (np.round(gap_GG - gap, DECIMALS) > 0) & win_G[:, None] & lose_G[None, :]
    i_C, j_C = np.nonzero(allowed_GG)
    order_C = np.lexsort((j_C, i_C, -np.round(usable_G[i_C], DECIMALS), -gap_GG[i_C, j_C]))
    return list(zip(i_C[order_C].tolist(), j_C[order_C].tolist(), strict=True))


def _different(candidates: Index, n: int, score_G: NDArray[np.float64], reply_G: Sequence[Any], same: str) -> Index:
    """The candidates whose two replies differ; raises at one whose do not, unless they are to be dropped."""
    kept = [(i, j) for i, j in candidates if not _equal(reply_G[i], reply_G[j])]
    if same == "raise" and len(kept) < len(candidates):
        i, j = next(pair for pair in candidates if _equal(reply_G[pair[0]], reply_G[pair[1]]))
        raise TutelageError(
            f"Replies {i} and {j} of task {n} are equal, and scored {score_G[i]:g} and {score_G[j]:g}: {str(reply_G[i])[:60]!r}. A pair of "
            'them would teach nothing. Likely cause: a score that is random, or of another list. Mend the scores, or pass same="drop".'
        )
    return kept


def _first(candidates: Index, max_pairs: int | None, disjoint: bool) -> Index:
    """The first `max_pairs`; with `disjoint`, of those that share no reply with an earlier one."""
    if not disjoint:
        return candidates[:max_pairs]
    kept: Index = []
    used: set[int] = set()
    for i, j in candidates:
        if not used & {i, j}:
            kept.append((i, j))
            used |= {i, j}
    return kept[:max_pairs]


def _flags(rows: Rows | None, n: int, size: int) -> NDArray[np.bool_]:
    return np.ones(size, dtype=bool) if rows is None else np.asarray(rows[n], dtype=bool)


def _scores(n: int, row: Sequence[Any] | NDArray[Any]) -> NDArray[np.float64]:
    try:
        score_G = np.asarray(row, dtype=np.float64)
    except (TypeError, ValueError):
        score_G = np.empty((0, 0))
    if score_G.ndim != 1:
        raise TutelageError(f"The scores of task {n} are not one number per reply: {str(row)[:60]}.")
    return score_G


def _equal(one: Any, other: Any) -> bool:
    """Whether two replies are the same; token ids may be arrays."""
    one, other = (reply.tolist() if hasattr(reply, "tolist") else reply for reply in (one, other))
    return bool(one == other)


def _check_settings(gap: float, max_pairs: int | None, same: str, min_pairs: int) -> None:
    if same not in get_args(Same):
        raise unknown("way to treat equal replies", same, get_args(Same))
    if not gap >= 0:
        raise TutelageError(
            f"gap={gap!r} must not be negative: a reply would be preferred to a better one. The least is 0, any difference."
        )
    if max_pairs is not None and max_pairs < 1:
        raise TutelageError(f"max_pairs={max_pairs!r} must be at least 1; None takes all pairs of a task.")
    if min_pairs < 0:
        raise TutelageError(f"min_pairs={min_pairs!r} must not be negative; 0 accepts an empty result.")


def _check_shapes(scores: Rows, others: dict[str, Rows]) -> None:
    """Rows of at least two replies, and the other arguments of the same shape."""
    if len(scores) == 0:
        raise TutelageError("There are no scores: expected one row per task, with a score for each of its replies.")
    for n, row in enumerate(scores):
        size = len(row) if np.ndim(row) > 0 or isinstance(row, Sequence) else 0
        if size < 2:
            raise TutelageError(
                f"Task {n} has {size} scored replies, and a pair needs at least two. Sample more replies for it or leave the "
                "task out; for one flat list of scores over all tasks, reshape to (tasks, replies)."
            )
    for name, rows in others.items():
        if len(rows) != len(scores):
            raise TutelageError(f"{name} has {len(rows)} rows and scores {len(scores)}; expected one row per task in both.")
        for n, row in enumerate(rows):
            if len(row) != len(scores[n]):
                raise TutelageError(
                    f"Task {n} has {len(scores[n])} scores and {len(row)} entries in {name}; expected one per reply in both."
                )


def _check_scores(n: int, score_G: NDArray[np.float64], usable_G: NDArray[np.bool_]) -> None:
    bad_G = usable_G & ~np.isfinite(score_G)
    if bad_G.any():
        g = int(bad_G.argmax())
        raise TutelageError(
            f"Reply {g} of task {n} has the score {score_G[g]}, which cannot be compared. Likely cause: a reply that could not be judged. "
            "Leave such replies out with may_win=np.isfinite(scores) and may_lose=np.isfinite(scores), or give them a score."
        )
