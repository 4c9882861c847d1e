"""AGAIN: ALP-GMM that pools its own components with those that served a similar earlier student.

Source: Portelas, Romac, Hofmann, Oudeyer, "Meta automatic curriculum learning" (arXiv 2011.08463).

    until the pre-test:  ALP-GMM with 10 % uniform tasks
    pre-test:  scores of the student on fixed tasks; of the k earlier students with the nearest scores then, the one that ended best;
               its run distilled into niches IN_1 .. IN_m, each with a target return (see `classroom`)
    then:      uniform with probability 0.02, else a component of IN_j and the live mixture, in proportion to mean ALP
               R: j + 1 once the last 10 returns of tasks of IN_j reach its target on average
               T: j + 1 every 250 episodes;  P: all IN pooled for ever
    after the last IN (R): it stays, but every 100 tasks from it its ALPs become the means of its own last 100 ALPs
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from tutelage.curricula._base import Wants
from tutelage.curricula._draws import draw_arms, proportional
from tutelage.curricula._mixtures import Criterion, Float
from tutelage.curricula._spaces import Range
from tutelage.curricula.alp_gmm import ALPGMM
from tutelage.curricula.classroom import Classroom, Fit, Niche, Trace, distil
from tutelage.errors import TutelageError, unknown
from tutelage.outcomes import Outcomes
from tutelage.registry import curricula
from tutelage.spaces import TaskSpace

Advance = Literal["R", "T", "P"]
Select = Literal["scores", "random"]

_REFRESH = 100  # tasks from the last niche between refreshes of its progress, and progress values that count


@curricula.register("again")
class Again(ALPGMM):
    """ALP-GMM helped by the curriculum of a similar earlier student (AGAIN; arXiv 2011.08463).

    classroom: directory of earlier runs; None, or without a similar one: ALP-GMM with `pretest_random`, which is also how a classroom
    begins. At the end of a run, `curriculum.enrol()` adds it. tests: number of test tasks, spread over the space by a Halton sequence;
    test_points: these instead. test_every: episodes between tests, asked for through `wants`, one attempt each. pretest_epochs: after how
    many tests the expert is chosen. nearest: k. max_distance: root mean square difference of test scores beyond which an earlier student
    is not similar; None, all are. select: "scores", or "random" (a control). advance: R, T or P, see the module. random_share: once an
    expert is chosen; end_random: after its last niche, None, the same. least_progress: of a component that is distilled. returns,
    tolerance: of rule R. patience: episodes after which a niche is left whatever its returns (an extension, off; a wrong expert's target
    may never be met). live: pool the niches with the live mixture; without it (the source's "IN only"), tasks come from the niches alone
    until fit_every episodes at the last one have passed (rule P: for ever), then from the live mixture, with `pretest_random`. The others
    as in `alp-gmm`.

    Where no earlier student resembles the new one, the method does worse than ALP-GMM alone: set `max_distance`. In the miniature
    (`tutelage replicate meta-acl-again`) AGAIN mastered 0.21 on average over the run where ALP-GMM mastered 0.15; without a similar
    student 0.07, with the opt-out 0.15. Patience did not help. Test scores of similar students differed by 0.10 at most, those of others by
    0.18 at least, so that a threshold is found by looking at the distances within a classroom (`Classroom.nearest`).

    Departures: a task of a niche that was left before its return came counts for none, and one proposed before a fit does not count to
    that fit; rule T counts from the choice of the expert, in intervals of fit_every, as does the bootstrap; runs helped by an expert may
    themselves be enrolled, with their live components.
    """

    name = "again"
    memory = (
        *ALPGMM.memory,
        *("students", "niche_state", "fits", "reward_M", "origin_M", "kc_ET", "open_origin_P3", "expert"),
        *("stage", "since", "queue", "ended", "recent", "drawn"),
    )

    def __init__(
        self,
        space: TaskSpace,
        *,
        seed: int = 0,
        classroom: str | None = None,
        tests: int = 64,
        test_points: tuple[tuple[float, ...], ...] | None = None,
        test_every: int = 1000,
        pretest_epochs: int = 1,
        nearest: int = 5,
        max_distance: float | None = None,
        select: Select = "scores",
        advance: Advance = "R",
        random_share: float = 0.02,
        end_random: float | None = None,
        pretest_random: float = 0.1,
        least_progress: float = 0.2,
        returns: int = 10,
        tolerance: float = 1.0,
        patience: int | None = None,
        live: bool = True,
        fit_every: int = 250,
        min_components: int = 2,
        max_components: int = 10,
        criterion: Criterion = "aic",
        history: int | None = None,
        reward_range: Range = None,
    ) -> None:
        mixture: dict[str, Any] = {"fit_every": fit_every, "min_components": min_components, "max_components": max_components}
        mixture |= {"history": history}
        super().__init__(space, seed=seed, random_share=random_share, criterion=criterion, reward_range=reward_range, **mixture)
        given = None if test_points is None else self.space.check(test_points, field="again: test_points").tolist()
        self.config |= {"tests": tests, "test_points": given, "test_every": test_every, "pretest_epochs": pretest_epochs}
        self.config |= {"nearest": nearest, "max_distance": max_distance, "select": select, "advance": advance, "end_random": end_random}
        self.config |= {"pretest_random": pretest_random, "least_progress": least_progress, "returns": returns, "tolerance": tolerance}
        self.config |= {"patience": patience, "live": live}
        _check(self.config)
        self.test_TD = _spread(self.space, tests) if given is None else np.array(given)
        self.classroom = None
        if classroom is not None:
            self.classroom = Classroom(classroom, self.space, self.test_TD, reward_range=self.config["reward_range"])
        self.students = [] if self.classroom is None else list(self.classroom.traces)  # those that a resumed run looks among, too
        self.niches: list[Niche] = []
        self.fits: list[dict[str, Any]] = []
        self._reward, self._origin = list[float](), list[int]()
        self.kc_ET = np.zeros((0, len(self.test_TD)))
        self.open_origin_P3 = np.zeros((0, 3), dtype=np.int64)  # of open proposals: niche, component, number of the fit; -1 for none
        self.expert = ""
        self.stage, self.since, self.ended, self.drawn = 0, 0, False, 0  # j; episodes at it; after the last; draws since the refresh
        self.queue, self.recent = list[float](), list[list[float]]()  # returns of IN_j; after the end, progress of its components

    # Tests ----------------------------------------------------------------------------------------------------------------------------

    @classmethod
    def probes_per_draw(
        cls, *, tests: int = 64, test_points: tuple[tuple[float, ...], ...] | None = None, test_every: int = 1000, **_: object
    ) -> float:
        """Test tasks for each task taught."""
        return (tests if test_points is None else len(test_points)) / test_every

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({"tests"})

    def wants(self) -> Wants | None:
        """The test tasks, one attempt each, whenever `test_every` more episodes have come back."""
        due = self.episodes >= self.config["test_every"] * (len(self.kc_ET) + 1)
        return Wants(self.test_TD.copy(), attempts=1) if due else None

    def _answer(self, outcomes: Outcomes) -> None:
        if self.wants() is None:
            super()._answer(outcomes)
        asked_T, given_T = np.lexsort(self.test_TD.T), np.zeros(0, dtype=np.int64)
        if outcomes.point_ND is not None and outcomes.point_ND.shape == self.test_TD.shape:
            given_T = np.lexsort(outcomes.point_ND.T)
        if outcomes.reward_NG is None or outcomes.point_ND is None or not np.array_equal(self.test_TD[asked_T], outcomes.point_ND[given_T]):
            raise TutelageError(
                f"again asked for the returns of its {len(self.test_TD)} test tasks and got an answer of {len(outcomes)} rows that are not "
                "these, or without reward_NG. Answer `wants` with all of its points in one observe(..., probe=True)."
            )
        kc_T = np.empty(len(self.test_TD))
        kc_T[asked_T] = self._returns(outcomes)[given_T]
        if len(self.kc_ET) + 1 == self.config["pretest_epochs"]:
            self._choose(kc_T)
        self.kc_ET = np.concatenate([self.kc_ET, kc_T[None]])

    def _choose(self, kc_T: Float) -> None:
        """The expert and its niches; none where no earlier student is similar."""
        if self.classroom is None or not self.students:
            return
        epoch, most = self.config["pretest_epochs"], self.config["max_distance"]
        k = self.config["nearest"] if self.config["select"] == "scores" else len(self.students)
        near = self.classroom.nearest(kc_T, epoch, k, among=self.students)
        names = [name for name, distance in near if most is None or distance <= most]
        if not names:
            return
        random = self.config["select"] == "random"
        expert = sorted(names)[int(self.rng.integers(len(names)))] if random else self.classroom.best(names)
        self.niches = distil(self.classroom.traces[expert], least_progress=self.config["least_progress"])
        self.expert = expert if self.niches else ""
        if self.config["advance"] == "P" and self.niches:
            means, covs = zip(*[(niche.mean_KQ, niche.cov_KQQ) for niche in self.niches], strict=True)
            self.niches = [Niche(np.concatenate(means), np.concatenate(covs), self.niches[-1].target)]

    # Tasks ----------------------------------------------------------------------------------------------------------------------------

    def propose(self, n: int) -> Float:
        points_ND = super().propose(n)
        self.open_origin_P3 = np.concatenate([self.open_origin_P3, self._proposed_N3])[-len(self.open_PD) :]
        return points_ND

    def _propose(self, n: int) -> Float:
        points_ND = self.space.sample(n, self.rng)
        self._proposed_N3 = np.full((n, 3), -1, dtype=np.int64)
        mean_KQ, cov_KQQ, progress_K = self._pool()
        if not len(mean_KQ):
            return points_ND
        guided = np.flatnonzero(self.rng.random(n) >= self.uniform_share)
        component_N = draw_arms(proportional(progress_K), len(guided), self.rng)
        normal_NQ = self.rng.standard_normal((len(guided), mean_KQ.shape[1]))
        draw_NQ = mean_KQ[component_N] + np.einsum("nij,nj->ni", np.linalg.cholesky(cov_KQQ)[component_N], normal_NQ)
        points_ND[guided] = self.space.clip(draw_NQ[:, : self.space.dimensions])
        borrowed = len(self.niches[self.stage].mean_KQ) if self.follows else 0
        from_niche_N = component_N < borrowed
        self._proposed_N3[guided, 0] = np.where(from_niche_N, self.stage, -1)
        self._proposed_N3[guided, 1] = np.where(from_niche_N, component_N, component_N - borrowed)
        self._proposed_N3[guided, 2] = np.where(from_niche_N, -1, len(self.fits))
        return points_ND

    @property
    def follows(self) -> bool:
        """Whether tasks come from an expert's niches, alone or among others."""
        over = self.stage == len(self.niches) - 1 and self.since >= self.config["fit_every"] and self.config["advance"] != "P"
        return bool(self.niches) and (self.config["live"] or not over)

    @property
    def uniform_share(self) -> float:
        """The probability of a uniform task now."""
        if not self.follows:
            return float(self.config["pretest_random"])
        after = self.ended and self.config["end_random"] is not None
        return float(self.config["end_random"] if after else self.config["random_share"])

    def _pool(self) -> tuple[Float, Float, Float]:
        """Components of IN_j, then those of the live mixture: means, covariances, and ALPs by which they are drawn."""
        live_K = self._utility_K()
        if not self.follows:
            return self.mean_KQ, self.cov_KQQ, live_K
        niche = self.niches[self.stage]
        progress_K = np.maximum(niche.mean_KQ[:, -1], 0.0)
        if not self.config["live"]:
            return niche.mean_KQ, niche.cov_KQQ, progress_K
        means, covs = np.concatenate([niche.mean_KQ, self.mean_KQ]), np.concatenate([niche.cov_KQQ, self.cov_KQQ])
        return means, covs, np.concatenate([progress_K, live_K])

    def _settle(self, place_N: Any) -> None:
        self._settled_N3 = self.open_origin_P3[place_N]
        self.open_origin_P3 = np.delete(self.open_origin_P3, place_N, axis=0)

    def _learn(self, points_ND: Float, reward_N: Float) -> None:
        for row, (niche, component, fit) in enumerate(self._settled_N3):
            fitted = len(self.fits)
            super()._learn(points_ND[row : row + 1], reward_N[row : row + 1])
            self._reward.append(float(reward_N[row]))
            self._origin.append(int(component) if niche < 0 and fit == fitted else -1)
            if self.episodes % self.config["fit_every"] == 0:
                self.fits.append({"episode": self.episodes, "mean_KQ": self.mean_KQ.copy(), "cov_KQQ": self.cov_KQQ.copy()})
            if self.niches:
                self._follow(int(niche), int(component), float(reward_N[row]), float(self.row_MQ[-1, -1]))

    def _follow(self, niche: int, component: int, reward: float, progress: float) -> None:
        """Where in the expert's curriculum the student stands after an episode."""
        self.since += 1
        here = niche == self.stage
        if self.ended and here:
            self.recent[component] = [*self.recent[component], progress][-_REFRESH:]
            self.drawn += 1
            if self.drawn % _REFRESH == 0:
                last = self.niches[self.stage]
                mean_KQ = last.mean_KQ.copy()
                mean_KQ[:, -1] = [np.mean(values) if values else 0.0 for values in self.recent]
                self.niches[self.stage] = Niche(mean_KQ, last.cov_KQQ, last.target)
        if self.config["advance"] == "T" and self.since >= self.config["fit_every"] and self.stage < len(self.niches) - 1:
            self._next()
        if self.config["advance"] != "R" or self.ended:
            return
        if here:
            self.queue = [*self.queue, reward][-self.config["returns"] :]
        full, patience = here and len(self.queue) == self.config["returns"], self.config["patience"]
        reached = full and np.mean(self.queue) >= self.niches[self.stage].target * self.config["tolerance"]
        if reached or (patience is not None and self.since >= patience):
            self._next()

    def _next(self) -> None:
        self.queue = []
        if self.stage < len(self.niches) - 1:
            self.stage, self.since = self.stage + 1, 0
        else:
            self.ended, self.recent = True, [[] for _ in self.niches[self.stage].mean_KQ]

    # What is left behind --------------------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """This run, for a classroom."""
        fits = tuple(Fit(int(fit["episode"]), fit["mean_KQ"], fit["cov_KQQ"]) for fit in self.fits)
        return Trace(self.test_TD, self.kc_ET.copy(), self.config["fit_every"], fits, self.reward_M, self.origin_M)

    def enrol(self, *, improved: bool = True) -> str | None:
        """Add this run to the classroom; its name there, or None where it is not worth keeping (see `Classroom.add`)."""
        if self.classroom is None:
            raise TutelageError("again: there is no classroom to enrol in; build the curriculum with classroom='a directory'.")
        return self.classroom.add(self.trace, improved=improved)

    @property
    def reward_M(self) -> Float:
        """The return of every episode so far."""
        return np.array(self._reward)

    @reward_M.setter
    def reward_M(self, reward_M: Float) -> None:
        self._reward = [float(r) for r in reward_M]

    @property
    def origin_M(self) -> Any:
        """The component of the latest fit that each episode's task came from, -1 for none."""
        return np.array(self._origin, dtype=np.int64)

    @origin_M.setter
    def origin_M(self, origin_M: Any) -> None:
        self._origin = [int(o) for o in origin_M]

    @property
    def niche_state(self) -> list[dict[str, Any]]:
        """The niches, as the state keeps them."""
        return [{"mean_KQ": niche.mean_KQ, "cov_KQQ": niche.cov_KQQ, "target": niche.target} for niche in self.niches]

    @niche_state.setter
    def niche_state(self, state: list[dict[str, Any]]) -> None:
        self.niches = [Niche(np.array(n["mean_KQ"]), np.array(n["cov_KQQ"]), float(n["target"])) for n in state]

    @property
    def metrics(self) -> dict[str, float]:
        tested = float(self.kc_ET[-1].mean()) if len(self.kc_ET) else 0.0
        mine = {"niches": float(len(self.niches)), "niche": float(self.stage), "after_last": float(self.ended), "test_score": tested}
        return {**super().metrics, **mine}


def _spread(space: TaskSpace, tests: int) -> Float:
    """The first points of the Halton sequence, the same for every run over a space."""
    from scipy.stats import qmc

    return space.clip(space.low_D + qmc.Halton(space.dimensions, scramble=False).random(tests) * space.range_D)


def _check(config: dict[str, Any]) -> None:
    for what, known in (("select", Select), ("advance", Advance)):
        if config[what] not in get_args(known):
            raise unknown(f"{what} of again", config[what], get_args(known))
    for name in ("tests", "test_every", "pretest_epochs", "nearest", "returns", "patience"):
        if config[name] is not None and config[name] < 1:
            raise TutelageError(f"again: {name} must be at least 1; got {config[name]}.")
    for name in ("pretest_random", "end_random"):
        if config[name] is not None and not 0 <= config[name] <= 1:
            raise TutelageError(f"again: {name} must lie in [0, 1]; got {config[name]}.")
    for name in ("least_progress", "tolerance"):
        if not np.isfinite(config[name]):
            raise TutelageError(f"again: {name} must be finite; got {config[name]}.")
    if config["max_distance"] is not None and not config["max_distance"] >= 0:
        raise TutelageError(f"again: max_distance must be at least 0; got {config['max_distance']}.")
    if config["test_points"] == []:
        raise TutelageError("again: test_points is empty; give at least one point, or leave it out.")
