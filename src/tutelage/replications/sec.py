"""SEC (arXiv 2505.14970): a bandit over task categories, paid in mean absolute advantage.

**Claim.** At equal rollouts, SEC teaches better than drawing tasks uniformly, most of all on the hard tasks.

**Set-up.** The parallel-answers student sorts n digits, n = 2 ... 9 being the arms (`tutelage.study.miniature`). 200 updates of 32
prompts x 8 rollouts from the same warm start in each seed. Primary metric: sampled accuracy on the three longest inputs (n = 7, 8, 9)
after the last update. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** SEC at tau 0.3 and at tau 1, alpha 0.5. Easy to hard in two readings: a growing prefix of the tasks in order of n
(the library's `easy_to_hard`) and the release's baseline, one sorted pass. The same comparison with an unlearnable arm beside the eight:
its groups keep a spread for ever (E|A| = 0.51), so a bandit that chases |A| can be lured; its share of the draws is reported as
`noise_share`. SEC draws more long tasks, hence more training tokens: the comparison is repeated at equal training tokens.

**Departures from the paper.** A miniature student instead of Qwen2.5 3B and 7B; 200 steps of 32 prompts instead of 240 of 256, one
gradient step per batch instead of four; reward without partial credit for format; decks refill arm by arm (see `tutelage.curricula.sec`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.curricula._base import Curriculum
from tutelage.pools import TaskPool
from tutelage.registry import replications
from tutelage.study.miniature import BUDGET, METRIC_ABOUT, SETTINGS, Scale, arm
from tutelage.study.replicate import Comparison, Replication


class SortedPass(Curriculum):
    """One pass from the easiest to the hardest task, spread over `draws` draws: draw i shows the task at quantile i / draws."""

    name = "sorted_pass"

    def __init__(self, pool: TaskPool, *, seed: int = 0, draws: int) -> None:
        super().__init__(pool, seed=seed, config={"draws": draws})
        assert pool.difficulty_N is not None
        shuffled_N = self.rng.permutation(len(pool))
        self._order_N = shuffled_N[np.argsort(pool.difficulty_N[shuffled_N], kind="stable")]

    def _propose(self, n: int) -> NDArray[np.int64]:
        place_N = (self.lessons * n + np.arange(n)) * len(self.pool) // self.config["draws"]
        return self._order_N[np.minimum(place_N, len(self.pool) - 1)]


def sorted_pass(pool: TaskPool, seed: int, scale: Scale) -> Curriculum:
    """The release's `difficulty` baseline for a run of this scale."""
    return SortedPass(pool, seed=seed, draws=scale.updates * scale.batch)


@replications.register("sec")
def sec() -> Replication:
    """At equal rollouts, a bandit paid in mean |advantage| teaches hard tasks better than uniform sampling.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2505.14970",
        metric="hard",
        metric_about=METRIC_ABOUT,
        budget=BUDGET,
        settings=SETTINGS,
        arms={
            "uniform": arm("uniform", "every task equally often"),
            "sec": arm("sec", "SEC, tau 0.3", tau=0.3, alpha=0.5),
            "sec_tau1": arm("sec", "SEC, tau 1", tau=1.0, alpha=0.5),
            "easy_to_hard": arm("easy_to_hard", "a prefix of the sorted tasks that grows over 80 % of the run"),
            "sorted": arm(sorted_pass, "one sorted pass from easy to hard"),
            "uniform_noise": arm("uniform", "uniform, with an unlearnable ninth arm", noise=True),
            "sec_noise": arm("sec", "SEC, tau 0.3, with an unlearnable ninth arm", noise=True, tau=0.3, alpha=0.5),
        },
        comparisons=(
            Comparison(method="sec", baseline="uniform"),
            Comparison(method="sec_tau1", baseline="uniform"),
            Comparison(method="easy_to_hard", baseline="uniform"),
            Comparison(method="sorted", baseline="uniform"),
            Comparison(method="sec_noise", baseline="uniform_noise"),
            Comparison(method="sec", baseline="uniform", equal="training_tokens"),
        ),
    )
