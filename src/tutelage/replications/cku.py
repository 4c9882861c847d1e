"""CKU (arXiv 2505.18588): gradient-ascent unlearning with the neurons of useful knowledge locked.

**Claim.** Locking the feed-forward neurons that score highest on useful text, and unlearning with the others, keeps more of what is useful
at equal forgetting than locking as many neurons at random.

**Set-up.** A four-layer Llama (`tutelage.study.skills`) learns two skills (reverse, shift) and 360 facts of two symbols under two surface
forms each; 40 more facts, of three symbols under forms of their own, are the forget set, so that what is to go has a place of its own. Of
the facts that stay, half are useful text (scored, and the retain set, with examples of the skills), half are held out. Unlearning is
ascent on form A of the forget facts, with a KL to the model as it was on the useful text, on the feed-forward blocks of all layers, AdamW.
Primary metric: `utility`, exact match on the held-out facts and on fresh inputs of the skills (mean of the two), where the forget set's
exact match first falls to 5 %, linear between measurements. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** `snip` at rate 0.8 (the paper) against `random`, `inverse` (the lowest scores are locked), `free` (nothing locked,
the same blocks and KL) and `ascent` (nothing locked, no KL); `wanda` as another score; rates 0.5 and 0.95. Locking slows learning, hence
matched forgetting and the random lock of equal rate. Also reported: form B of the forgotten facts (does forgetting generalise), steps
taken, and `gini`, how concentrated the scores are over neurons (0 all alike, 1 all in one).

**Departures from the paper.** A miniature with inert facts instead of a chat model and an attack suite; the score, the weights and the
retain term are reconstructions (see `tutelage.model_edits.cku`); all layers instead of layers 8 to 12 of 32.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tutelage.registry import replications
from tutelage.study import skills
from tutelage.study.miniature import one_thread
from tutelage.study.replicate import Arm, Cell, Comparison, Replication

REVERSE, SHIFT, FORM_A, FORM_B, GONE_A, GONE_B = skills.TAGS[:6]


@dataclass(frozen=True)
class Scale:
    """The size of an experiment: supervised and unlearning steps, numbers of facts and texts."""

    pretrain: int = 1500
    layers: int = 4
    inner: int = 256
    kept_facts: int = 360
    gone_facts: int = 40
    skill_texts: int = 128
    batch: int = 96
    unlearn: int = 240
    check_every: int = 4
    lr: float = 3e-4


FULL = Scale()
SMOKE = Scale(pretrain=3, layers=2, kept_facts=8, gone_facts=4, skill_texts=4, batch=12, unlearn=2, check_every=1)


@dataclass(frozen=True)
class Scene:
    """A seed's model and texts: what goes (form A, form B), what is useful (scored and retained), what is held out."""

    model: Any
    gone: list[Any]
    gone_again: list[Any]
    useful: list[Any]
    held_out_facts: list[Any]
    held_out_skills: list[Any]


@lru_cache(maxsize=2)
def scene(seed: int, size: Scale) -> Scene:
    """Teach everything; all arms of a seed share it."""
    rng = np.random.default_rng([seed, 0])
    kept = skills.facts(rng, (FORM_A, FORM_B), size.kept_facts)
    gone = skills.facts(rng, (GONE_A, GONE_B), size.gone_facts, answer_length=3)
    everything = [text for fact in (*kept, *gone) for text in fact]

    def draw() -> list[Any]:
        known = [everything[i] for i in rng.integers(len(everything), size=size.batch * 2 // 3)]
        return known + skills.skill(rng, "reverse", REVERSE, size.batch // 6) + skills.skill(rng, "shift", SHIFT, size.batch // 6)

    model = skills.llama(seed, layers=size.layers, inner=size.inner)
    with one_thread():
        skills.fit(model, draw, size.pretrain)
    half = len(kept) // 2
    trained, fresh = (
        skills.skill(rng, "reverse", REVERSE, size.skill_texts) + skills.skill(rng, "shift", SHIFT, size.skill_texts) for _ in range(2)
    )
    useful = [text for fact in kept[:half] for text in fact] + trained
    return Scene(model, [a for a, _ in gone], [b for _, b in gone], useful, [a for a, _ in kept[half:]], fresh)


def unlearned(seed: int, smoke: bool, *, retain_loss: Literal["kl", "none"] = "kl", **lock: Any) -> Cell:
    """Unlearn from the seed's model and measure on the way; `sweep` in the cell has a list over measurements for each quantity."""
    from tutelage.model_edits.calibration import batches
    from tutelage.model_edits.cku import Cku
    from tutelage.model_edits.neurons import feed_forwards, neuron_scores
    from tutelage.model_edits.unlearn import Unlearning

    size = SMOKE if smoke else FULL
    world = scene(seed, size)
    model = copy.deepcopy(world.model)
    useful = lambda: batches(world.useful, size=64, pad_id=skills.PAD)  # noqa: E731
    part = Cku(depth=(0.0, 1.0), seed=seed, **lock)
    points: dict[str, list[float]] = {"step": []}
    with one_thread():
        constraints = part.constraints(model, useful)
        job = Unlearning(
            model, world.gone, world.useful, **constraints, retain_loss=retain_loss, lr=size.lr, batch_size=len(world.gone),
            pad_id=skills.PAD, seed=seed,
        )  # fmt: skip
        for step in range(0, size.unlearn + 1, size.check_every):
            job.run(step)
            points["step"].append(float(step))
            for name, value in measured(model, world).items():
                points.setdefault(name, []).append(value)
            if points["gone"][-1] <= 0.05:
                break
        scores = neuron_scores(world.model, useful, feed_forwards(world.model), kind=part.score, seed=seed)
    score = {name: skills.at_level(points["gone"], points[name], 0.05) for name in ("utility", "facts", "skills", "gone_form_b", "step")}
    score |= {"start_utility": points["utility"][0], "end_gone": points["gone"][-1]}
    score["gini"] = float(np.mean([gini(score_F.numpy()) for score_F in scores.values()]))
    return {"score": score, "sweep": points}


def measured(model: Any, world: Scene) -> dict[str, float]:
    """Exact match on what goes, in both forms, and on what should stay."""
    facts, fresh = skills.share_exact(model, world.held_out_facts), skills.share_exact(model, world.held_out_skills)
    return {
        "gone": skills.share_exact(model, world.gone),
        "gone_form_b": skills.share_exact(model, world.gone_again),
        "facts": facts,
        "skills": fresh,
        "utility": (facts + fresh) / 2,
    }


def gini(value_F: np.ndarray) -> float:
    """The Gini coefficient of values that are not negative."""
    ordered_F, n = np.sort(value_F), len(value_F)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered_F / max(n * ordered_F.sum(), 1e-300))


def _arm(about: str, **how: Any) -> Arm:
    return Arm(run=lambda seed, smoke: unlearned(seed, smoke, **how), about=about, settings=how)


@replications.register("cku")
def cku() -> Replication:
    """At equal forgetting, locking the neurons that score highest on useful text keeps more than locking random ones.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2505.18588",
        metric="utility",
        metric_about="exact match on held-out facts and skills where the forget set's exact match first falls to 5 %",
        budget=f"at most {FULL.unlearn} unlearning steps on all {FULL.gone_facts} facts, until forgotten",
        settings=asdict(FULL),
        arms={
            "snip": _arm("80 % of neurons locked, by |w x gradient| on useful text", score="snip", rate=0.8),
            "random": _arm("80 % locked at random", score="random", rate=0.8),
            "inverse": _arm("the 80 % of lowest score locked", score="snip", rate=0.8, inverse=True),
            "wanda": _arm("80 % locked, by weight x activation norm", score="wanda", rate=0.8),
            "free": _arm("nothing locked", score="random", rate=0.0),
            "ascent": _arm("nothing locked, no retain term", score="random", rate=0.0, retain_loss="none"),
            "snip_50": _arm("50 % locked", score="snip", rate=0.5),
            "snip_95": _arm("95 % locked", score="snip", rate=0.95),
        },
        comparisons=(
            Comparison(method="snip", baseline="random"),
            Comparison(method="snip", baseline="free"),
            Comparison(method="snip", baseline="inverse"),
            Comparison(method="wanda", baseline="random"),
            Comparison(method="free", baseline="ascent"),
        ),
    )
