"""Controllers: SASR's rule by hand-computed cases, the coin, the static hybrids, and an exact state."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.objectives import CONTROLLERS, Controller, controller
from tutelage.objectives.controllers import SASRSwitch, switch_probability

pytestmark = pytest.mark.lm
SETTINGS = {"sasr": {"g_ref": 2.0}, "cosine": {"steps": 8}, "two_stage": {"steps": 3}}
NORMS = st.floats(1e-6, 1e6)


def make(kind, **settings):
    return controller(kind, **SETTINGS.get(kind, {}) | settings)


def shares(switch, steps, g=1.0, reward=0.5):
    """The supervised weights of so many steps; supervised steps show the norm g, the others the reward."""
    found, stats = [], {}
    for _ in range(steps):
        weights = switch.update(stats)
        found.append(weights.get("imitate", 0.0))
        stats = ({"imitate/grad_norm": g} if "imitate" in weights else {}) | ({"reward": reward} if "policy" in weights else {})
    return found


@pytest.mark.parametrize(
    ("g_last", "g_ref", "gamma", "p"),
    [(2, 2, 1, 0.5), (1, 4, 1, 0.2), (0.5, 4, 1, 0.111111), (2, 2, 0.5, 0.666667), (4, 1, 1, 0.8), (0, 3, 1, 0), (0, 0, 1, 0)],
)
def test_the_rule(g_last, g_ref, gamma, p):
    assert switch_probability(g_last, g_ref, gamma) == pytest.approx(p, abs=1e-6)


def test_the_limits_of_gamma():
    assert switch_probability(1.0, 1.0, 1e12) == pytest.approx(0, abs=1e-9)
    assert switch_probability(1.0, 1.0, math.inf) == 0
    assert switch_probability(1.0, 1.0, 1e-12) == pytest.approx(1, abs=1e-9)
    assert switch_probability(1.0, 1.0, 0.0) == 1


@given(NORMS, NORMS, st.floats(0.01, 100), st.floats(1.01, 100))
def test_monotone_and_invariant(g_last, g_ref, gamma, factor):
    p = switch_probability(g_last, g_ref, gamma)
    assert 0 < p < 1
    assert switch_probability(g_last * factor, g_ref, gamma) >= p >= switch_probability(g_last, g_ref, gamma * factor)
    assert switch_probability(g_last * factor, g_ref * factor, gamma) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_the_first_hybrid_step(gamma):
    switch = SASRSwitch(gamma=gamma, warmup_steps=3)
    for g in (None, 9.0, 5.0):
        assert switch.update({} if g is None else {"imitate/grad_norm": g}) == {"imitate": 1.0}
        assert switch.p == 1
    switch.update({"imitate/grad_norm": 4.0})
    assert switch.reference == switch.g_last == 4.0
    assert switch.p == pytest.approx(1 / (1 + gamma))


def test_an_averaged_reference_and_smoothing():
    switch = SASRSwitch(warmup_steps=3, reference_steps=2, ema=0.75)
    for g in (None, 9.0, 5.0, 3.0):
        switch.update({} if g is None else {"imitate/grad_norm": g})
    assert switch.reference == 4.0
    switch.update({"imitate/grad_norm": 8.0})
    assert switch.g_last == 0.75 * 4 + 0.25 * 8
    assert switch.p == pytest.approx(5 / 9)


def test_only_supervised_steps_move_the_norm():
    """Two identical GRPO steps do not change g_last, nor does an overflow."""
    switch = SASRSwitch(g_ref=2.0)
    switch.update({})
    switch.update({"imitate/grad_norm": 1.0})
    assert switch.g_last == 1.0
    for _ in range(2):
        switch.update({"policy/grad_norm": 50.0, "grad_norm": 50.0, "reward": 0.3})
        assert switch.g_last == 1.0
        assert switch.p == pytest.approx(1 / 3)
    switch.update({"imitate/grad_norm": math.nan})
    switch.update({"imitate/grad_norm": math.inf})
    assert switch.g_last == 1.0
    assert switch.metrics == {"p": 1 / 3, "supervised": switch.weight, "sft_share": switch.supervised_steps / 6, "g_sft": 1.0, "g_ref": 2.0}


def test_the_coin():
    def heads(seed):
        switch = controller("fixed", ratio=0.2, seed=seed)
        return [bool(switch.update({}).get("imitate")) for _ in range(10_000)]

    first = heads(0)
    assert np.mean(first) == pytest.approx(0.2, abs=0.012)  # three standard errors
    assert heads(0) == first  # the same on every rank
    assert heads(1) != first


def test_the_modes():
    assert SASRSwitch(g_ref=1.0, mode="threshold").update({}) == {"policy": 1.0}  # p = 1/2 is not above 1/2
    assert SASRSwitch(g_ref=1.0, gamma=0.9, mode="threshold").update({}) == {"imitate": 1.0}
    expected = SASRSwitch(g_ref=1.0, gamma=3.0, mode="expected")
    assert expected.update({}) == {"imitate": 0.25, "policy": 0.75}
    assert expected.measures == {"imitate"}
    assert expected.update({"imitate/grad_norm": 3.0}) == {"imitate": 0.5, "policy": 0.5}
    assert expected.metrics["sft_share"] == pytest.approx(0.375)
    assert controller("fixed", ratio=1.0, mode="expected").update({}) == {"imitate": 1.0}
    assert SASRSwitch(g_ref=1.0).measures == frozenset()


def test_reinforcement_absorbs_the_threshold():
    switch = SASRSwitch(gamma=0.5, g_ref=1.0, mode="threshold")
    assert shares(switch, 2, g=0.4) == [1.0, 0.0]  # 0.4 / 0.9 < 1/2
    assert shares(switch, 20, g=100.0) == [0.0] * 20


def test_the_static_hybrids():
    assert shares(make("alternate", k=2, warmup_steps=1), 7) == [1, 1, 1, 0, 0, 1, 1]
    assert shares(make("two_stage", warmup_steps=1), 6) == [1, 1, 1, 1, 0, 0]
    cosine = shares(make("cosine", mode="expected"), 10)
    np.testing.assert_allclose(cosine[:9], [(1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)], atol=1e-12)
    assert cosine[9] == 0
    assert shares(make("fixed", ratio=0.25, mode="expected", warmup_steps=2), 4) == [1, 1, 0.25, 0.25]
    assert shares(make("fixed", ratio=0.0), 5) == [0] * 5
    assert shares(make("fixed", ratio=1.0), 5) == [1] * 5


def test_accuracy_decides():
    assert shares(make("accuracy", threshold=0.2), 5, reward=0.1) == [0, 1, 0, 1, 0]
    assert shares(make("accuracy", threshold=0.2, every=3), 6, reward=0.1) == [0, 1, 1, 1, 0, 1]
    assert shares(make("accuracy", threshold=0.2), 5, reward=0.3) == [0] * 5
    assert shares(make("accuracy"), 3, reward=0.0) == [0, 1, 0]


@pytest.mark.parametrize("kind", sorted(CONTROLLERS))
@pytest.mark.parametrize("mode", ["coin", "expected"])
def test_the_state_is_exact(kind, mode):
    rng = np.random.default_rng(3)
    shown = [{"imitate/grad_norm": float(rng.gamma(2)), "reward": float(rng.random() < 0.5)} for _ in range(30)]
    whole = make(kind, mode=mode, warmup_steps=2)
    assert isinstance(whole, Controller)
    for stats in shown[:13]:
        whole.update(stats)
    state = json.loads(json.dumps(whole.state_dict()))
    taken = make(kind, mode=mode, warmup_steps=2)
    taken.load_state_dict(state)
    for stats in shown[13:]:
        assert taken.update(copy.deepcopy(stats)) == whole.update(stats)
        assert taken.metrics == whole.metrics
    assert taken.state_dict() == whole.state_dict()


def test_another_state_is_refused():
    with pytest.raises(TutelageError, match=r"gamma was 1\.0 and is 2\.0"):
        make("sasr", gamma=2.0).load_state_dict(make("sasr").state_dict())
    with pytest.raises(TutelageError, match=r"kind was 'alternate' and is 'sasr'"):
        make("sasr").load_state_dict(make("alternate").state_dict())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sasr", {"g_ref": None}, "at least one warm-up step"),
        ("sasr", {"gamma": -1.0}, "gamma must not be negative"),
        ("sasr", {"ema": 1.0}, "ema lie in"),
        ("sasr", {"mode": "coins"}, "Did you mean 'coin'"),
        ("sasr", {"gama": 1.0}, "Did you mean 'gamma'"),
        ("sasrr", {}, "Did you mean 'sasr'"),
        ("alternate", {"k": 0}, "at least 1"),
        ("fixed", {"ratio": 1.5}, "share of supervised steps"),
        ("cosine", {"steps": 0}, "steps >= 1"),
        ("fixed", {"warmup_steps": -1}, "0 means no warm-up"),
    ],
)
def test_what_cannot_be(kind, settings, message):
    with pytest.raises(TutelageError, match=message):
        make(kind, **settings)


def test_a_warm_up_that_was_not_measured():
    switch = SASRSwitch(warmup_steps=1)
    switch.update({})
    with pytest.raises(TutelageError, match="no gradient norm of it came in"):
        switch.update({"grad_norm": 3.0})
