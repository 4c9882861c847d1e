"""Online difficulty filtering (arXiv 2504.03380): train only on groups of intermediate pass rate, and refill the batch.

**Claim.** At equal updates and equal training batch, the balanced filter teaches better than plain GRPO, and better than skewed filters.

**Set-up.** The parallel-answers student sorts n = 2 ... 9 digits (`tutelage.study.miniature`). 200 updates of 32 groups of 8 rollouts
from the same warm start in each seed. Filters sample as many more prompts as are missing until 32 groups are admitted or 128 were
sampled, and then train on what there is. Primary metric: sampled accuracy on the three longest inputs (n = 7, 8, 9) after the last
update. Seeds 0 to 9. Fixed before the first full run.

**Arms and controls.** Strict 0 < p < 1 (DAPO's dynamic sampling); balanced 0.2 <= p <= 0.8; skewed 0 < p <= 0.8 (cuts the easy side) and
0.2 <= p < 1 (cuts the hard side). A filter spends up to four times the rollouts of plain GRPO: the control that counts is `uniform_128`,
which trains on all of 128 prompts per update. It is compared where it has spent exactly the filter's rollouts, seed by seed; so is plain
GRPO, where the filter has spent plain GRPO's rollouts, and once more at equal training tokens.

**Departures from the paper.** A miniature student instead of Qwen2.5-3B on mathematics; thresholds 0.2 and 0.8 (the paper's exact pairs
are not public); G = 8 instead of 16.
"""

from __future__ import annotations

from tutelage.registry import replications
from tutelage.study.miniature import BUDGET, METRIC_ABOUT, SETTINGS, arm
from tutelage.study.replicate import Comparison, Replication


@replications.register("online-difficulty-filtering")
def online_difficulty_filtering() -> Replication:
    """At equal updates, training only on groups of intermediate pass rate, refilled, teaches better than training on all.

    See the module for set-up, controls and departures.
    """
    return Replication(
        paper="arXiv 2504.03380",
        metric="hard",
        metric_about=METRIC_ABOUT,
        budget=BUDGET + "; filters sample at most 128 prompts per update",
        settings=SETTINGS,
        arms={
            "uniform": arm("uniform", "plain GRPO, 32 prompts"),
            "strict": arm("odf", "0 < p < 1, refilled to 32", window="strict"),
            "balanced": arm("odf", "0.2 <= p <= 0.8, refilled to 32", window="balanced"),
            "skewed_easy": arm("odf", "0 < p <= 0.8, refilled to 32", window="skewed_easy"),
            "skewed_hard": arm("odf", "0.2 <= p < 1, refilled to 32", window="skewed_hard"),
            "uniform_128": arm("uniform", "plain GRPO, 128 prompts", batch=128),
        },
        comparisons=(
            Comparison(method="balanced", baseline="uniform"),
            Comparison(method="strict", baseline="uniform"),
            Comparison(method="skewed_easy", baseline="uniform"),
            Comparison(method="skewed_hard", baseline="uniform"),
            Comparison(method="balanced", baseline="skewed_easy"),
            Comparison(method="balanced", baseline="skewed_hard"),
            Comparison(method="balanced", baseline="uniform_128", equal="rollouts"),
            Comparison(method="balanced", baseline="uniform", equal="rollouts"),
            Comparison(method="balanced", baseline="uniform", equal="training_tokens"),
        ),
    )
