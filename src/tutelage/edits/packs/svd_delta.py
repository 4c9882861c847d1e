"""Keeping the leading singular directions of a difference, the stronger ones in more bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tutelage.edits._dtypes import Array
from tutelage.edits.packs.coding import Choice, Code, Operator, matrix_shape
from tutelage.edits.packs.low_rank import energy_rank, exact_product, squared_singular_values, truncated_svd
from tutelage.edits.packs.quantization import (
    GROUP,
    Quantized,
    check_bits,
    check_group,
    fit_grid,
    prepare,
    quantize,
    round_to_grid,
    stored_bytes,
    sweep,
    unit_of,
)
from tutelage.errors import TutelageError
from tutelage.registry import edits

OFFERED = (2, 3, 4, 6, 8)
_PROBED = 32  # directions on which the error of a bit width is measured
_POINTS = 32  # points of a curve
Schedule = list[tuple[int, int]]  # (bits, directions), strongest first


@edits.register("svd_delta")
class SvdDelta(Operator):
    """A matrix's difference as Û Σ V̂ᵀ, its directions ordered by strength and quantised in groups of falling precision.

        Δ ≈ Σ_k σ_k u_k v_kᵀ;   V̂ᵀ = Quant_b(Vᵀ, x),   Û = Quant_b(U, Σ V̂ᵀ x);   the tail is dropped

    GraftLLM (arXiv 2505.18502, stage B) after Delta-CoMe (Ping et al. 2024): attention matrices at a fixed rank, MLP matrices at the
    smallest rank that holds the share `energy` of ‖Δ‖². Quantisation is GPTQ in these two steps where statistics of the inputs x are given,
    with every group of directions calibrated on what the groups before it left; else to nearest. Σ takes
    16 bits (32 where a group does).

    Departure: grids of U run along a direction, as those of V do, not across directions of different strength; at a rank below the group
    size that is also fewer grids.

    Args:
        rank: the most directions kept; None for all that `bits` and `energy` leave.
        energy: β, the share of ‖Δ‖² that the kept directions hold.
        bits: of all directions, or groups "bits:count", strongest first; the default is that of the released script for attention.
        group: entries of a direction that share a grid.
        damp: share of the statistics' mean diagonal that GPTQ adds to it.
    """

    name = "svd_delta"

    def __init__(
        self,
        *,
        rank: int | None = None,
        energy: float | None = None,
        bits: int | str = "8:20,4:180,2:800",
        group: int = GROUP,
        damp: float = 0.01,
    ) -> None:
        if (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
            raise TutelageError(f"svd_delta takes a rank of at least 1 and an energy in (0, 1]; got rank={rank}, energy={energy}.")
        self.rank, self.energy, self.schedule = rank, energy, parse_schedule(bits)
        self.group, self.damp = check_group(group), damp

    def encode(self, delta: Array, *, gram_NN: Array | None = None, rng: np.random.Generator) -> Code:
        delta_MN = delta.reshape(matrix_shape(delta.shape))
        schedule = cut(self.schedule, self._most(delta_MN.shape))
        if self.energy is not None:
            schedule = cut(schedule, energy_rank(squared_singular_values(delta_MN), self.energy))
        u_MR, sigma_R, vt_RN = truncated_svd(delta_MN, sum(count for _, count in schedule), rng)
        sigma = quantize(sigma_R[None], _sigma_bits(schedule))
        v = _quantize_v(vt_RN, schedule, self.group, gram_NN, self.damp)
        scaled_RN = sigma.values_RC[0][:, None] * np.concatenate([q.values_RC for q in v])
        u = _quantize_u(u_MR.T, schedule, self.group, None if gram_NN is None else scaled_RN @ gram_NN @ scaled_RN.T, self.damp)
        meta = {"groups": schedule, "group": self.group, "unit": sigma.unit, "units": [q.unit for q in (*v, *u)]}
        data = [part for q in (sigma, *v, *u) for part in q.bytes()]
        return Code(self.name, delta.shape, np.concatenate(data), meta)

    def _most(self, shape: tuple[int, ...]) -> int:
        """The most directions that a matrix of this shape is given."""
        most = min(*shape, sum(count for _, count in self.schedule))
        return most if self.rank is None else min(most, self.rank)

    @staticmethod
    def decode(code: Code) -> Array:
        (rows, columns), meta = code.rows_columns, code.meta
        rank = sum(count for _, count in meta["groups"])
        sigma, rest = Quantized.read(code.data, 1, rank, _sigma_bits(meta["groups"]), 1, meta["unit"])
        units, parts = iter(meta["units"]), []
        for length in (columns, rows):
            side = []
            for bits, count in meta["groups"]:
                stored, rest = Quantized.read(rest, count, length, bits, min(meta["group"], length), next(units))
                side.append(stored.values_RC)
            parts.append(np.concatenate(side))
        vt_RN, ut_RM = parts
        return exact_product(ut_RM.T, sigma.values_RC[0][:, None].astype(np.float64) * vt_RN)

    @classmethod
    def curve(cls, delta: Array, rng: np.random.Generator, *, group: int = GROUP, **fixed: Any) -> list[Choice]:
        """As `Operator.curve`.

        Bits are chosen for each direction by the least σ_k² ε_b + λ · bytes over a range of λ, with ε_b, the relative error of a direction
        at b bits, measured on the strongest; errors are those of the directions, taken as independent.
        """
        delta_MN = delta.reshape(matrix_shape(delta.shape))
        energy_R = squared_singular_values(delta_MN)
        open_R = energy_R[: min(fixed.get("rank") or len(energy_R), len(energy_R))]
        if fixed.get("energy") is not None:
            open_R = open_R[: energy_rank(energy_R, fixed["energy"])]
        widths = sorted({bits for bits, _ in parse_schedule(fixed["bits"])} if "bits" in fixed else OFFERED)
        error_of = _errors(delta_MN, widths, group, rng)
        rest = {key: value for key, value in fixed.items() if key not in ("bits", "rank", "energy")}
        if "bits" in fixed:
            whole = cut(parse_schedule(fixed["bits"]), len(open_R))
            schedules = [cut(whole, rank) for rank in np.unique(np.geomspace(1, sum(c for _, c in whole), _POINTS).astype(int))]
        else:
            schedules = _schedules(open_R, error_of, delta_MN.shape, group)
        return [
            Choice(
                schedule_bytes(delta_MN.shape, schedule, group),
                _error(energy_R, schedule, error_of),
                cls.name,
                {"bits": format_schedule(schedule), "group": group, **rest},
            )
            for schedule in schedules
        ]

    def most_bytes(self, shape: tuple[int, ...]) -> int:
        return schedule_bytes(matrix_shape(shape), cut(self.schedule, self._most(matrix_shape(shape))), self.group)


# Schedules -------------------------------------------------------------------------------------------------------------------------------


def parse_schedule(bits: int | str) -> Schedule:
    """Groups of directions from "8:20,4:180" (bits:count, strongest first), or all directions in one width."""
    if isinstance(bits, int) or str(bits).strip().isdigit():
        return [(check_bits(int(bits)), 1 << 30)]
    try:
        groups = [(int(width), int(count)) for width, _, count in (part.partition(":") for part in str(bits).split(","))]
    except ValueError:
        raise TutelageError(f"bits={bits!r}: expected a number of bits, or groups bits:count such as '8:20,4:180,2:800'.") from None
    if any(count < 0 for _, count in groups):
        raise TutelageError(f"bits={bits!r}: a group cannot have a negative number of directions.")
    return [(check_bits(width), count) for width, count in groups if count]


def format_schedule(schedule: Schedule) -> str:
    return ",".join(f"{bits}:{count}" for bits, count in schedule)


def cut(schedule: Schedule, rank: int) -> Schedule:
    """The first `rank` directions of a schedule."""
    out = []
    for bits, count in schedule:
        if rank > 0:
            out.append((bits, min(count, rank)))
        rank -= count
    return out


def _sigma_bits(schedule: Schedule) -> int:
    return 32 if any(bits == 32 for bits, _ in schedule) else 16


def schedule_bytes(shape: tuple[int, ...], schedule: Schedule, group: int) -> int:
    """Bytes of U, Σ and V."""
    sigma = _sigma_bits(schedule) // 8
    return sum(sigma * count + sum(stored_bytes(count, n, bits, min(group, n)) for n in shape) for bits, count in schedule)


def _errors(delta_MN: Array, widths: list[int], group: int, rng: np.random.Generator) -> dict[int, float]:
    """ε_b = mean of ‖u vᵀ − û v̂ᵀ‖² over the strongest directions, for each number of bits."""
    u_MR, _, vt_RN = truncated_svd(delta_MN, min(_PROBED, *delta_MN.shape), rng)
    sides = (np.ascontiguousarray(u_MR.T), vt_RN)
    errors = {}
    for bits in widths:
        coded = [quantize(side, bits, group=group).values_RC for side in sides]
        size_R = np.prod([np.einsum("rn,rn->r", c, c) for c in coded], axis=0)
        match_R = np.prod([np.einsum("rn,rn->r", s, c) for s, c in zip(sides, coded, strict=True)], axis=0)
        errors[bits] = max(float(np.mean(1 + size_R - 2 * match_R)), 0.0)
    return errors


def _error(energy_R: Array, schedule: Schedule, error_of: dict[int, float]) -> float:
    kept, lost = 0, 0.0
    for bits, count in schedule:
        lost += error_of[bits] * float(energy_R[kept : kept + count].sum())
        kept += count
    return lost + float(energy_R[kept:].sum())


def _schedules(energy_R: Array, error_of: dict[int, float], shape: tuple[int, ...], group: int) -> list[Schedule]:
    """The schedules on the way from one direction to all."""
    widths = [0, *error_of]
    error_W = np.array([1.0, *error_of.values()])
    cost_W = np.array([0.0, *(schedule_bytes(shape, [(bits, 8)], group) / 8 for bits in error_of)])
    positive = energy_R[energy_R > energy_R[0] * 1e-12] if len(energy_R) and energy_R[0] > 0 else energy_R[:0]
    if not len(positive):
        return []
    gains = [energy * (1 - error_W[1:]).max() / cost_W[1:].min() for energy in (positive[0], positive[-1] * error_W[1:].min())]
    found: dict[str, Schedule] = {}
    for price in np.geomspace(gains[0], max(gains[1], gains[0] * 1e-9), _POINTS):
        best_R = np.argmin(positive[:, None] * error_W + price * cost_W, axis=1)
        counts = np.bincount(best_R, minlength=len(widths))
        schedule = [(widths[w], int(counts[w])) for w in range(len(widths) - 1, 0, -1) if counts[w]]
        if schedule:
            found[format_schedule(schedule)] = schedule
    return list(found.values())


# Quantising the factors ------------------------------------------------------------------------------------------------------------------


def _segments(rows_RL: Array, schedule: Schedule) -> Iterator[tuple[int, Array]]:
    start = 0
    for bits, count in schedule:
        yield bits, rows_RL[start : start + count]
        start += count


def _quantize_v(vt_RN: Array, schedule: Schedule, group: int, gram_NN: Array | None, damp: float) -> list[Quantized]:
    return [quantize(rows, bits, group=group, gram_CC=gram_NN, damp=damp) for bits, rows in _segments(vt_RN, schedule)]


def _quantize_u(ut_RM: Array, schedule: Schedule, group: int, gram_RR: Array | None, damp: float) -> list[Quantized]:
    """Uᵀ with grids along its rows; under second moments, direction after direction, the later ones making up for the earlier."""
    ut_RM = np.ascontiguousarray(ut_RM)
    if gram_RR is None or any(bits > 8 for bits, _ in schedule):
        return [quantize(rows, bits, group=group) for bits, rows in _segments(ut_RM, schedule)]
    order_R, upper_RR, dead_R = prepare(gram_RR, damp)
    ut_RM = np.where(dead_R[:, None], 0, ut_RM)
    group = min(group, ut_RM.shape[1])
    bits_R = np.repeat([bits for bits, _ in schedule], [count for _, count in schedule])
    unit_R = np.repeat(
        [unit_of(2 * float(np.abs(rows).max(initial=0)) / (2**bits - 1)) for bits, rows in _segments(ut_RM, schedule)],
        [count for _, count in schedule],
    )
    code_RM = np.empty(ut_RM.shape, np.uint8)
    grids: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0))] * len(ut_RM)

    def to_nearest(place: int, u_M: Array) -> Array:
        k = int(order_R[place])
        bits, unit = int(bits_R[k]), int(unit_R[k])
        scale_G, zero_G = (part[0] for part in fit_grid(u_M[None].astype(np.float32), bits, group, unit))
        grids[k] = scale_G, zero_G
        scale_M = np.repeat(np.ldexp(scale_G.astype(np.float32), unit), group)[: len(u_M)]
        zero_M = np.repeat(zero_G.astype(np.float32), group)[: len(u_M)]
        code_RM[k] = round_to_grid(u_M, scale_M, zero_M, bits)
        return scale_M * (code_RM[k] - zero_M)

    sweep(ut_RM[order_R].T.astype(np.float64), upper_RR, to_nearest)
    out, start = [], 0
    for bits, count in schedule:
        own = grids[start : start + count]
        scale_RG, zero_RG = np.stack([s for s, _ in own]), np.stack([z for _, z in own])
        out.append(Quantized(code_RM[start : start + count], scale_RG, zero_RG, bits, group, int(unit_R[start])))
        start += count
    return out
