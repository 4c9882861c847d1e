"""Packs: the sheet's exact cases, bytes as measured, budgets kept, what is loaded comes off to the bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from checkpoints import load, save
from test_edits_cli import ok, run
from tutelage.edits.apply import apply
from tutelage.edits.packs._bits import pack as pack_bits
from tutelage.edits.packs._bits import packed_bytes, unpack
from tutelage.edits.packs.budget import convex_hull, solve
from tutelage.edits.packs.build import pack, plan_pack
from tutelage.edits.packs.coding import Choice, decode
from tutelage.edits.packs.dense_delta import DenseDelta
from tutelage.edits.packs.low_rank import energy_rank, exact_product, squared_singular_values, truncated_svd
from tutelage.edits.packs.pack import SkillPack, open_vector
from tutelage.edits.packs.quantization import quantize, stored_bytes
from tutelage.edits.packs.quantized_delta import QuantizedDelta
from tutelage.edits.packs.rules import parse_rules, read_rules
from tutelage.edits.packs.second_moments import SecondMoments
from tutelage.edits.packs.sparse_delta import SparseDelta
from tutelage.edits.packs.svd_delta import SvdDelta, format_schedule, parse_schedule, schedule_bytes
from tutelage.edits.remove import remove
from tutelage.edits.store import WeightStore
from tutelage.edits.task_vector import TaskVector, diff
from tutelage.edits.verify import verify_pack
from tutelage.errors import TutelageError

SHAPES = {
    "model.embed_tokens.weight": (400, 32),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.self_attn.q_proj.bias": (32,),
    "model.layers.0.mlp.up_proj.weight": (96, 32),
    "model.norm.weight": (32,),
}


def rng_of(seed=0):
    return np.random.default_rng(seed)


def low_rank(rng, m, n, rank=6):
    return (rng.normal(size=(m, rank)) / np.arange(1, rank + 1)) @ rng.normal(size=(rank, n)) + 0.1 * rng.normal(size=(m, n))


def tensors(seed=0):
    rng = rng_of(seed)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()} | {"model.steps": np.arange(4)}


def tuned(seed=1, scale=1e-2):
    rng, out = rng_of(seed), tensors()
    for name, shape in SHAPES.items():
        step = low_rank(rng, *shape) if len(shape) == 2 else rng.normal(size=shape)
        out[name] = (out[name] + scale * step).astype("f4")
    return out


@pytest.fixture
def pair(tmp_path):
    return WeightStore(save(tmp_path / "base", tensors())), WeightStore(save(tmp_path / "tuned", tuned()))


def bits_of(folder):
    return {n: a.tobytes() for n, a in load(folder).items()}


# Exact cases -----------------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_bits_come_back(bits, count, seed):
    codes = rng_of(seed).integers(2**bits, size=count)
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(count, bits) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def test_bits_of_several_chunks(monkeypatch):
    monkeypatch.setattr("tutelage.edits.packs._bits._CHUNK", 16)
    codes = rng_of().integers(8, size=101)
    np.testing.assert_array_equal(unpack(pack_bits(codes, 3), 3, 101), codes)
    np.testing.assert_array_equal(pack_bits(np.array([0b101, 0b001, 0b110]), 3), [0b10100111, 0b00000000])


def test_energy_rule_and_truncation_of_the_sheet():
    delta = np.diag([3.0, 2.0, 1.0]).astype("f4")
    energy = squared_singular_values(delta)
    np.testing.assert_allclose(energy, [9, 4, 1])
    assert energy_rank(energy, 0.9) == 2  # 0.9 · 14 = 12.6 ≤ 13
    assert energy_rank(energy, 1.0) == 3
    assert energy_rank(np.zeros(3), 0.9) == 0
    for rank, error in ((1, 5), (2, 1)):
        code = SvdDelta(rank=rank, bits=32).encode(delta, rng=rng_of())
        assert np.sum((delta - decode(code)) ** 2) == pytest.approx(error, rel=1e-3)
    assert SvdDelta(energy=0.9, bits=32).encode(delta, rng=rng_of()).meta["groups"] == [(32, 2)]


def test_grid_of_the_sheet():
    row = np.array([[-1, 0, 0.5, 2]], np.float32)
    coded = quantize(row, 2)
    assert np.ldexp(coded.scale_RG.astype(float), coded.unit).tolist() == [[1.0]]
    assert coded.zero_RG.tolist() == [[1]]
    assert coded.code_RC.tolist() == [[0, 1, 1, 3]]  # 0.5 rounds to the even 0
    assert coded.values_RC.tolist() == [[-1, 0, 0, 2]]
    zeros = quantize(np.zeros((2, 3), np.float32), 3)
    assert not zeros.values_RC.any()


def test_prune_of_the_sheet():
    delta = np.array([0.1, -3, 2, -0.5], np.float32)
    code = SparseDelta(keep=0.5, bits=32).encode(delta)
    assert decode(code).tolist() == [0, -3, 2, 0]


def test_size_of_the_sheet():
    schedule = parse_schedule("8:2,3:32,2:968")
    directions = sum(bits * count for bits, count in schedule)
    assert directions * (4096 + 4096) / (16 * 4096 * 4096) == 1 / 16  # codes alone, as the sheet counts
    codes = sum(packed_bytes(count * 4096, bits) for bits, count in schedule) * 2
    assert codes * 16 == 2 * 4096 * 4096
    grids = sum(count * 32 * (2 + bits / 8) for bits, count in schedule) * 2
    assert schedule_bytes((4096, 4096), schedule, 128) == codes + grids + 2 * 1002
    assert format_schedule(schedule) == "8:2,3:32,2:968"


def test_gptq_under_the_identity_is_rounding_to_nearest():
    w, h = rng_of().normal(size=(6, 40)).astype("f4"), 3.5 * np.eye(40)
    for damp in (0.0, 0.01, 1.0):
        np.testing.assert_array_equal(quantize(w, 3, group=16, gram_CC=h, damp=damp).values_RC, quantize(w, 3, group=16).values_RC)


def test_gptq_beats_rounding_where_inputs_are_correlated():
    wins = 0
    for seed in range(40):
        rng = rng_of(seed)
        x = rng.normal(size=(24, 8)) @ rng.normal(size=(8, 200)) + 0.3 * rng.normal(size=(24, 200))
        w, h = rng.normal(size=(8, 24)).astype("f4"), 2 / 200 * x @ x.T
        errors = [w - quantize(w, 3, group=24, gram_CC=gram).values_RC for gram in (h, None)]
        after, before = (np.trace(e @ h @ e.T) for e in errors)
        wins += after <= before
    assert wins >= 38


def test_gptq_over_several_blocks_is_the_plain_recursion(monkeypatch):
    rng = rng_of(3)
    x = rng.normal(size=(20, 60))
    w, h = rng.normal(size=(4, 20)).astype("f4"), x @ x.T / 30
    whole = quantize(w, 3, group=8, gram_CC=h)
    monkeypatch.setattr("tutelage.edits.packs.quantization._BLOCK", 3)
    np.testing.assert_array_equal(quantize(w, 3, group=8, gram_CC=h).code_RC, whole.code_RC)


def test_a_dead_input_becomes_zero_and_bad_statistics_are_refused():
    w, h = rng_of().normal(size=(3, 5)).astype("f4"), np.eye(5)
    h[2, 2] = 0
    values = quantize(w, 4, gram_CC=h).values_RC
    assert not values[:, 2].any()
    assert values[:, 1].any()
    with pytest.raises(TutelageError, match="must be finite"):
        quantize(w, 4, gram_CC=np.full((5, 5), np.nan))
    with pytest.raises(TutelageError, match="not positive definite"):
        quantize(w, 4, gram_CC=np.eye(5) - 2 * np.ones((5, 5)) + 2 * np.eye(5))


def test_sixteen_bits_are_half_precision_whatever_the_scale():
    for scale in (1e-9, 1.0, 1e9):
        w = (scale * rng_of().normal(size=(5, 7))).astype("f4")
        np.testing.assert_allclose(quantize(w, 16).values_RC, w, rtol=2**-10, atol=scale * 1e-6)
        np.testing.assert_allclose(decode(DenseDelta().encode(w)), w, rtol=2**-10, atol=scale * 1e-6)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9), (6, 2, 5)])
def test_without_truncation_or_rounding_nothing_is_lost(shape):
    delta = (1e-3 * rng_of().normal(size=shape)).astype("f4")
    for operator in (SvdDelta(bits=32), SparseDelta(keep=1.0, bits=32), DenseDelta(bits=32), QuantizedDelta(bits=32)):
        code = operator.encode(delta, gram_NN=None, rng=rng_of())
        assert np.abs(decode(code) - delta).max() <= 1e-5 * np.abs(delta).max()
        assert decode(code).dtype == np.float32
        assert decode(code).shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1, 2, 2)])
def test_tensors_of_any_shape(shape):
    delta = np.asarray(rng_of().normal(size=shape), "f4")
    for operator in (SparseDelta(keep=1.0, bits=32), DenseDelta(bits=32), DenseDelta()):
        found = decode(operator.encode(delta))
        assert found.shape == shape
        np.testing.assert_allclose(found, delta, rtol=1e-3)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.003, 0.05, 0.3, 0.6, 1.0]), st.integers(1, 3000))
@settings(deadline=None, max_examples=40)
def test_positions_of_kept_entries_come_back(seed, keep, size):
    delta = rng_of(seed).normal(size=size).astype("f4")
    code = SparseDelta(keep=keep, bits=32).encode(delta)
    found = decode(code)
    assert np.count_nonzero(found) == max(1, int(keep * size))
    np.testing.assert_array_equal(found[found != 0], delta[found != 0])
    assert np.abs(found[found != 0]).min() >= np.abs(delta[found == 0]).max(initial=0)
    assert code.data.size <= SparseDelta(keep=keep, bits=32).most_bytes((size,))


def test_operators_object_to_their_settings():
    for build, message in (
        (lambda: SparseDelta(keep=0.0), r"keep=0.0"),
        (lambda: SvdDelta(rank=0), "rank of at least 1"),
        (lambda: SvdDelta(bits="8:many"), "bits:count"),
        (lambda: QuantizedDelta(bits=9), "expected 1 to 8"),
        (lambda: QuantizedDelta(group=0), "at least one weight"),
        (lambda: DenseDelta(bits=8), "quantized_delta"),
    ):
        with pytest.raises(TutelageError, match=message):
            build()


# Decompositions --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (50, 50)])
def test_the_decomposition_agrees_with_lapack(shape):
    delta = low_rank(rng_of(1), *shape, rank=20).astype("f4")
    u, sigma, vt = truncated_svd(delta, 30, rng_of())
    truth = np.linalg.svd(delta.astype(float), compute_uv=False)
    np.testing.assert_allclose(sigma, truth[:30], rtol=1e-5)
    np.testing.assert_allclose(u.T @ u, np.eye(30), atol=1e-5)
    np.testing.assert_allclose(vt @ vt.T, np.eye(30), atol=1e-4)
    assert np.sum((delta - (u * sigma) @ vt) ** 2) == pytest.approx(np.sum(truth[30:] ** 2), rel=1e-3)
    np.testing.assert_allclose(squared_singular_values(delta), truth**2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("power", [0.3, 0.7, 1.5])
def test_the_randomised_decomposition_is_within_two_percent(power):
    rng, m, n, rank = rng_of(2), 256, 400, 16
    sigma = np.arange(1, m + 1) ** -power
    delta = ((np.linalg.qr(rng.normal(size=(m, m)))[0] * sigma) @ np.linalg.qr(rng.normal(size=(n, m)))[0].T).astype("f4")
    u, s, vt = truncated_svd(delta, rank, rng_of())
    error = np.linalg.norm(delta - (u * s) @ vt)
    assert error <= 1.02 * np.sqrt(np.sum(sigma[rank:] ** 2))
    again = truncated_svd(delta, rank, rng_of())
    np.testing.assert_array_equal(vt, again[2])


def test_a_product_does_not_depend_on_the_order_of_its_sum():
    rng = rng_of(4)
    left, right = rng.normal(size=(33, 70)).astype("f4"), rng.normal(size=(70, 41)) * np.geomspace(1, 1e-6, 70)[:, None]
    truth, order = exact_product(left, right), rng.permutation(70)
    assert exact_product(left[:, order], right[order]).tobytes() == truth.tobytes()
    halves = exact_product(left, right[:, :20]), exact_product(left, right[:, 20:])
    assert np.abs(truth - left.astype(float) @ right).max() < 1e-5
    assert np.concatenate(halves, axis=1).shape == truth.shape
    assert not exact_product(np.zeros((2, 3)), np.zeros((3, 2))).any()


@pytest.mark.parametrize("calibrated", [False, True])
def test_bytes_of_a_code_are_those_of_its_formula(calibrated):
    delta = low_rank(rng_of(), 48, 40).astype("f4")
    x = rng_of(1).normal(size=(40, 200))
    code = SvdDelta(bits="8:2,3:5,2:9", group=16).encode(delta, gram_NN=x @ x.T / 100 if calibrated else None, rng=rng_of())
    assert code.data.size == schedule_bytes((48, 40), [(8, 2), (3, 5), (2, 9)], 16)
    assert code.data.size == SvdDelta(bits="8:2,3:5,2:9", group=16).most_bytes((48, 40))
    assert QuantizedDelta(bits=3, group=16).encode(delta).data.size == stored_bytes(48, 40, 3, 16)


def test_calibrated_factors_lose_less_of_what_the_layer_says():
    wins = 0
    for seed in range(10):
        rng = rng_of(seed)
        delta = low_rank(rng, 32, 48).astype("f4")
        x = rng.normal(size=(48, 6)) @ rng.normal(size=(6, 300)) + 0.2 * rng.normal(size=(48, 300))
        h = (2 / 300 * x @ x.T).astype("f4")
        operator = SvdDelta(bits="4:4,3:8,2:12", group=16)
        after, before = (
            np.trace(e @ h @ e.T) for gram in (h, None) for e in [delta - decode(operator.encode(delta, gram_NN=gram, rng=rng_of()))]
        )
        wins += after < before
    assert wins >= 9


@pytest.mark.parametrize("operator", [SvdDelta, QuantizedDelta, SparseDelta, DenseDelta])
def test_curves_tell_bytes_exactly_and_errors_nearly(operator):
    delta = (1e-3 * low_rank(rng_of(5), 64, 80)).astype("f4")
    curve = operator.curve(delta, rng_of())
    for choice in curve:
        code = operator(**choice.settings).encode(delta, gram_NN=None, rng=rng_of())
        assert code.data.size == choice.nbytes
        assert np.sum((delta - decode(code)) ** 2.0) == pytest.approx(choice.error, rel=0.35, abs=1e-12)
    errors = [choice.error for choice in convex_hull(curve)]
    assert errors == sorted(errors, reverse=True)


# The solver ------------------------------------------------------------------------------------------------------------------------------


def brute_force(curves, budget):
    totals = [(0, 0.0)]
    for choices in curves.values():
        totals = [(b + c.nbytes, e + c.error) for b, e in totals for c in choices if b + c.nbytes <= budget]
    return min(e for _, e in totals)


@given(st.integers(0, 2**32 - 1), st.integers(0, 120))
@settings(deadline=None, max_examples=60)
def test_the_solver_keeps_the_budget_and_is_near_the_best(seed, budget):
    rng = rng_of(seed)
    curves = {
        str(t): [Choice(0, 10.0), *(Choice(int(b), float(e)) for b, e in zip(rng.integers(1, 40, 4), rng.uniform(0, 10, 4), strict=True))]
        for t in range(4)
    }
    chosen = solve(curves, budget)
    assert sum(c.nbytes for c in chosen.values()) <= budget
    error, best = sum(c.error for c in chosen.values()), brute_force(curves, budget)
    hulls = [convex_hull(choices) for choices in curves.values()]
    step = max((a.error - b.error for hull in hulls for a, b in pairwise(hull)), default=0)
    assert best <= error + 1e-9
    assert error <= best + step + 1e-9


def test_the_solver_by_hand():
    curves = {"a": [Choice(0, 10.0), Choice(4, 2.0), Choice(8, 1.0)], "b": [Choice(0, 6.0), Choice(4, 1.0)]}
    assert {n: c.nbytes for n, c in solve(curves, 4).items()} == {"a": 4, "b": 0}
    assert {n: c.nbytes for n, c in solve(curves, 8).items()} == {"a": 4, "b": 4}
    assert {n: c.nbytes for n, c in solve(curves, 100).items()} == {"a": 8, "b": 4}
    with pytest.raises(TutelageError, match="too small"):
        solve({"a": [Choice(5, 1.0)]}, 4)


# Packs on disk ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["graftllm", "best"])
@pytest.mark.parametrize("budget", [0.15, 0.3, 0.8])
def test_a_file_never_exceeds_its_budget_and_errors_are_as_told(pair, tmp_path, recipe, budget):
    record = pack(*pair, tmp_path / "p.safetensors", rules=read_rules(recipe, budget=budget))
    size = (tmp_path / "p.safetensors").stat().st_size
    assert record["file_bytes"] == size <= budget * record["delta_bytes"]
    assert record["delta_bytes"] == sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
    skill, before, after = SkillPack(tmp_path / "p.safetensors"), tensors(), tuned()
    lost = 0.0
    for name in SHAPES:
        delta = (after[name] - before[name]).astype(float)
        left = delta - skill.decode(name) if name in skill.names else delta
        lost += np.sum(left**2)
        if name in skill.names:
            assert skill.error(name) == pytest.approx(np.linalg.norm(left) / np.linalg.norm(delta), rel=1e-4)
    total = sum(np.sum((after[n] - before[n]).astype(float) ** 2) for n in SHAPES)
    assert record["error"] == pytest.approx(np.sqrt(lost / total), rel=1e-3)
    assert verify_pack(skill)["problems"] == []


def test_more_bytes_are_less_error(pair, tmp_path):
    errors = [
        pack(*pair, tmp_path / f"{b}.safetensors", rules=read_rules("best", budget=b))["error"] for b in (0.12, 0.15, 0.2, 0.3, 0.5, 0.8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3


def test_the_paper_recipe_gives_each_module_its_operator(pair, tmp_path):
    record = pack(*pair, tmp_path / "p.safetensors", rules=read_rules(None))
    assert {t["name"]: t["operator"] for t in record["tensors"]} == {
        "model.embed_tokens.weight": "sparse_delta",
        "model.layers.0.self_attn.q_proj.weight": "svd_delta",
        "model.layers.0.self_attn.q_proj.bias": "dense_delta",
        "model.layers.0.mlp.up_proj.weight": "svd_delta",
        "model.norm.weight": "dense_delta",
    }
    assert record["left_out"] == {"model.steps": "equal in both"}


def test_two_packs_on_disjoint_modules_commute_and_come_off(pair, tmp_path):
    rules = [
        parse_rules({"tensors": [{"match": p, "operator": "quantized_delta"}, {"match": "*", "operator": "skip"}]})
        for p in ("*up*", "*emb*")
    ]
    for i, r in enumerate(rules):
        pack(*pair, tmp_path / f"{i}.safetensors", rules=r)
    packs = [open_vector(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert [p.names for p in packs] == [["model.layers.0.mlp.up_proj.weight"], ["model.embed_tokens.weight"]]
    apply(pair[0], packs, tmp_path / "ab")
    apply(pair[0], packs[::-1], tmp_path / "ba")
    assert bits_of(tmp_path / "ab") == bits_of(tmp_path / "ba") != bits_of(pair[0].path)
    remove(WeightStore(tmp_path / "ab"), packs, tmp_path / "back")
    assert bits_of(tmp_path / "back") == bits_of(pair[0].path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_packs_and_vectors_add_up_and_come_off_by_the_sidecar(tmp_path, dtype):
    cast = lambda table: {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in table.items()}  # noqa: E731
    base = WeightStore(save(tmp_path / "base", cast(tensors())))
    tuned_store = WeightStore(save(tmp_path / "tuned", cast(tuned())))
    pack(base, tuned_store, tmp_path / "p.safetensors", rules=read_rules(None))
    diff(base, WeightStore(save(tmp_path / "third", cast(tuned(7)))), tmp_path / "v.safetensors")
    vectors = [open_vector(tmp_path / "p.safetensors"), open_vector(tmp_path / "v.safetensors")]
    assert [type(v) for v in vectors] == [SkillPack, TaskVector]
    apply(base, vectors, tmp_path / "out", scale=0.7, undo="sidecar")
    name = "model.layers.0.mlp.up_proj.weight"
    step = vectors[0].decode(name).reshape(-1) + next(vectors[1].numbers(name, None))
    truth = (load(base.path)[name].astype("f4") + (np.float32(0.7) * step).reshape(96, 32)).astype(dtype)
    np.testing.assert_array_equal(load(tmp_path / "out")[name], truth)
    base.path.rename(tmp_path / "gone")
    assert remove(WeightStore(tmp_path / "out"), vectors, tmp_path / "back")["source"] == "sidecar"
    assert bits_of(tmp_path / "back") == bits_of(tmp_path / "gone")


def test_a_pack_refuses_another_base_and_names_the_tensors(pair, tmp_path):
    pack(*pair, tmp_path / "p.safetensors", rules=read_rules(None))
    skill = open_vector(tmp_path / "p.safetensors")
    skill.check_base(pair[0])
    with pytest.raises(TutelageError, match=r"5 tensors differ \(model.embed_tokens.weight, "):
        apply(pair[1], [skill], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_newer_damaged_and_foreign_files_are_refused(pair, tmp_path):
    pack(*pair, tmp_path / "p.safetensors", rules=read_rules(None))
    raw = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "new.safetensors").write_bytes(raw.replace(b'"version":"2"', b'"version":"9"'))
    with pytest.raises(TutelageError, match="pack of format 9"):
        open_vector(tmp_path / "new.safetensors")
    (tmp_path / "short.safetensors").write_bytes(raw[:-3])
    with pytest.raises(TutelageError, match="truncated or damaged"):
        open_vector(tmp_path / "short.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(raw.replace(b"sparse_delta", b"sparse_dalta"))
    with pytest.raises(TutelageError, match="Did you mean 'sparse_delta'"):
        SkillPack(tmp_path / "bad.safetensors").decode("model.embed_tokens.weight")
    (tmp_path / "odd.safetensors").write_bytes(raw.replace(b'"kept\\":', b'"kapt\\":'))
    with pytest.raises(TutelageError, match="is damaged"):
        SkillPack(tmp_path / "odd.safetensors").decode("model.embed_tokens.weight")
    flipped = bytearray(raw)
    flipped[-1] ^= 1
    (tmp_path / "flip.safetensors").write_bytes(flipped)
    assert "not the bytes" in verify_pack(SkillPack(tmp_path / "flip.safetensors"))["problems"][0]
    with pytest.raises(TutelageError, match="not a pack"):
        SkillPack(pair[0].path / "model.safetensors")


def test_weights_that_are_not_finite_are_refused_and_equal_checkpoints_too(pair, tmp_path):
    broken = tuned()
    broken["model.norm.weight"][3] = np.nan
    with pytest.raises(TutelageError, match=r"model\.norm\.weight has NaN"):
        pack(pair[0], WeightStore(save(tmp_path / "nan", broken)), tmp_path / "p.safetensors", rules=read_rules(None))
    broken = tensors()
    broken["model.norm.weight"][3] = np.inf
    same = WeightStore(save(tmp_path / "inf", broken))
    with pytest.raises(TutelageError, match=r"model\.norm\.weight has infinite values"):
        pack(same, same, tmp_path / "p.safetensors", rules=read_rules(None))
    with pytest.raises(TutelageError, match="nothing to pack"):
        pack(pair[0], pair[0], tmp_path / "p.safetensors", rules=read_rules(None))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "inf", "nan", "tuned"]


def test_a_budget_below_the_manifest_is_refused(pair, tmp_path):
    with pytest.raises(TutelageError, match=r"manifest takes .* Give at least --budget"):
        pack(*pair, tmp_path / "p.safetensors", rules=read_rules("best", budget=0.01))


def test_calibration_changes_codes_not_bytes(pair, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    x = rng_of(9).normal(size=(32, 4)) @ rng_of(10).normal(size=(4, 100))
    save(tmp_path / "h", {name: (x @ x.T / 50 + 0.01 * np.eye(32)).astype("f4")})
    statistics = SecondMoments(tmp_path / "h")
    plain, aware = (
        pack(*pair, tmp_path / f"{i}.safetensors", rules=read_rules("graftllm", budget=0.3), calibration=c)
        for i, c in enumerate((None, statistics))
    )
    assert plain["data_bytes"] == aware["data_bytes"]
    h, delta = statistics.gram(name), tuned()[name] - tensors()[name]
    plain_error, aware_error = (
        np.trace(e @ h @ e.T) for i in range(2) for e in [delta - SkillPack(tmp_path / f"{i}.safetensors").decode(name)]
    )
    assert aware_error < plain_error
    save(tmp_path / "wrong", {name: np.eye(31, dtype="f4")})
    with pytest.raises(TutelageError, match="statistics of 31 inputs"):
        pack(*pair, tmp_path / "x.safetensors", rules=read_rules(None), calibration=SecondMoments(tmp_path / "wrong"))
    save(tmp_path / "other", {"h.weight": np.eye(32, dtype="f4")})
    with pytest.raises(TutelageError, match="no statistics of any tensor"):
        SecondMoments(tmp_path / "other").check(pair[0])
    with pytest.raises(TutelageError, match="is square"):
        SecondMoments(pair[0].path)


# Recipes ---------------------------------------------------------------------------------------------------------------------------------


def test_recipes_are_checked(pair, tmp_path):
    def rules(**rule):
        return parse_rules({"tensors": [rule]}, source="r.yaml")

    for build, message in (
        (lambda: rules(match="*", operator="svd"), "Did you mean 'svd_delta'"),
        (lambda: rules(match="*", operator="ties"), "Unknown operator"),
        (lambda: rules(match="*", operator="svd_delta", ranks=3), "Did you mean 'rank'"),
        (lambda: rules(match="*", operator="svd_delta", rank="many"), "does not fit"),
        (lambda: rules(match="*", operator="sparse_delta", keep=2), "keep=2"),
        (lambda: rules(match="*", operator="skip", keep=0.1), "skip has no settings"),
        (lambda: rules(operator="skip"), "mapping with match and operator"),
        (lambda: parse_rules([1]), "a list of rules"),
        (lambda: parse_rules({"tensors": [{"match": "*", "operator": "skip"}], "budgets": 1}), "Did you mean 'budget'"),
        (lambda: read_rules("best"), "need a budget"),
        (lambda: read_rules(None, budget=1.5), "at most 1"),
        (lambda: read_rules(tmp_path / "none.yaml"), "Cannot read the recipe"),
        (lambda: plan_pack(*pair, rules(match="*nothing*", operator="skip")), "matches none"),
        (lambda: plan_pack(*pair, rules(match="*embed*", operator="sparse_delta")), "no rule matches the tensor model.layers.0"),
    ):
        with pytest.raises(TutelageError, match=message):
            build()


def test_a_recipe_file_fixes_what_it_says_and_leaves_the_rest_to_the_budget(pair, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "budget: 0.4\ntensors:\n- {match: '*embed*', operator: sparse_delta, keep: 0.3}\n- {match: '*q_proj.weight', operator: skip}\n"
        "- {match: '*', operator: [svd_delta, quantized_delta]}\n"
    )
    record = pack(*pair, tmp_path / "p.safetensors", rules=read_rules(tmp_path / "r.yaml"))
    skill = SkillPack(tmp_path / "p.safetensors")
    assert skill.manifest["model.embed_tokens.weight"]["meta"]["kept"] == 0.3 * 400 * 32
    assert record["left_out"]["model.layers.0.self_attn.q_proj.weight"] == "a rule says skip"
    assert record["share"] <= 0.4
    assert skill.recipe["budget"] == 0.4
    assert skill.recipe["rules"][1] == {"match": "*q_proj.weight", "operator": "skip"}


# Faults ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [3, 7, 10])
def test_killed_midway_the_same_command_goes_on(pair, tmp_path, when):
    out, plain = tmp_path / "p.safetensors", tmp_path / "plain.safetensors"
    code = (
        "import os, signal, sys, pathlib\nfrom tutelage.edits.packs.build import pack\nfrom tutelage.edits.packs.rules import read_rules\n"
        "from tutelage.edits.store import WeightStore\nleft = [int(sys.argv[4])]\n"
        "def tell(n):\n    left[0] -= 1\n    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "stores = [WeightStore(path) for path in sys.argv[1:3]]\n"
        "pack(*stores, pathlib.Path(sys.argv[3]), rules=read_rules('best', budget=0.3), tell=tell)"
    )
    command = [sys.executable, "-c", code, str(pair[0].path), str(pair[1].path), str(out), str(when)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    with open(tmp_path / ".p.safetensors.parts" / "data", "ab") as file:
        file.write(b"half")  # of a tensor that was being written
    reads = []
    pack(*pair, out, rules=read_rules("best", budget=0.3), tell=reads.append)
    all_reads = []
    pack(*pair, plain, rules=read_rules("best", budget=0.3), tell=all_reads.append)
    assert len(reads) < len(all_reads)
    assert out.read_bytes() == plain.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "p.safetensors", "plain.safetensors", "tuned"]


def test_other_settings_do_not_go_on_with_what_was_left(pair, tmp_path, monkeypatch):
    out = tmp_path / "p.safetensors"

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.edits.packs.build._assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(*pair, out, rules=read_rules("best", budget=0.5))
    assert (tmp_path / ".p.safetensors.parts" / "data").stat().st_size > 0
    record = pack(*pair, out, rules=read_rules("best", budget=0.2))
    assert record["share"] <= 0.2
    with pytest.raises(TutelageError, match="not overwritten"):
        pack(*pair, out, rules=read_rules("best", budget=0.2))
    with pytest.raises(TutelageError, match=r"Name it p\.bin\.safetensors"):
        pack(*pair, tmp_path / "p.bin", rules=read_rules(None))


def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path):
    import tracemalloc

    peaks = []
    for count in (2, 8):
        rng, stores = rng_of(), []
        for n in ("base", "tuned"):
            stores.append(
                WeightStore(save(tmp_path / f"{n}{count}", {f"l.{i}.w": rng.normal(size=(256, 384)).astype("f4") for i in range(count)}))
            )
        tracemalloc.start()
        pack(*stores, tmp_path / f"{count}.safetensors", rules=read_rules("best", budget=0.2))
        apply(stores[0], [open_vector(tmp_path / f"{count}.safetensors")], tmp_path / f"out{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert peaks[-1] < plan_pack(*stores, read_rules("best", budget=0.2))[0].peak_memory
    assert peaks[1] < 1.2 * peaks[0]


# The commands ----------------------------------------------------------------------------------------------------------------------------


def test_the_commands(pair, tmp_path):
    plan = ok("pack", "base", "tuned", "-o", "p.safetensors", "--budget", "0.2", "--dry-run", "--json", cwd=tmp_path)
    assert plan["operators"]["model.embed_tokens.weight"] == "sparse_delta"
    assert plan["bytes_out"] == int(0.2 * sum(4 * int(np.prod(shape)) for shape in SHAPES.values()))
    assert "model.steps" in plan["skipped"]
    assert "sparse_delta" in ok("pack", "base", "tuned", "-o", "p.safetensors", "--budget", "0.2", "--dry-run", cwd=tmp_path)
    assert not (tmp_path / "p.safetensors").exists()
    made = ok("pack", "base", "tuned", "-o", "p.safetensors", "--budget", "0.2", "--json", cwd=tmp_path)
    assert made["share"] <= 0.2
    text = ok("pack", "base", "tuned", "-o", "q.safetensors", "--recipe", "best", "--budget", "0.2", cwd=tmp_path)
    assert "left out: model.steps (equal in both)" in text
    assert "of the difference's" in text
    assert "p.safetensors: whole" in ok("verify", "p.safetensors", cwd=tmp_path)
    assert json.dumps(made["tensors"]) == json.dumps(ok("diff", "base", "p.safetensors", "--json", cwd=tmp_path)["tensors"])
    assert "tensors change; p.safetensors" in ok("diff", "base", "p.safetensors", cwd=tmp_path)
    ok("apply", "base", "p.safetensors", "q.safetensors", "-o", "out", cwd=tmp_path)
    assert ok("verify", "out", "--json", cwd=tmp_path)["problems"] == []
    ok("remove", "out", "q.safetensors", "p.safetensors", "-o", "back", cwd=tmp_path)
    assert bits_of(tmp_path / "back") == bits_of(tmp_path / "base")
    shutil.copy(tmp_path / "p.safetensors", tmp_path / "broken.safetensors")
    with open(tmp_path / "broken.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    for arguments, message in (
        (("apply", "tuned", "p.safetensors", "-o", "x"), "5 tensors differ"),
        (("diff", "tuned", "p.safetensors"), "5 tensors differ"),
        (("diff", "base", "p.safetensors", "-o", "v.safetensors"), "is a pack already"),
        (("verify", "broken.safetensors"), ""),
        (("pack", "base", "tuned", "-o", "p.safetensors"), "not overwritten"),
        (("pack", "base", "tuned", "-o", "x.safetensors", "--recipe", "none.yaml"), "Cannot read the recipe"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
