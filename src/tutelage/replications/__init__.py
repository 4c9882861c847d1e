"""One file per paper: the claim, the arms, the seeds and the primary metric, fixed before the first full run, and how they are composed.

    tutelage replicate sec            # under ten minutes on one core; writes results/sec.json
    tutelage replicate sec --smoke    # seconds; only shows that it runs, verdict "too few seeds"

A replication is a function registered under the paper's slug. The first line of its docstring is the claim; it returns a
`tutelage.study.replicate.Replication`. Replications never import one another: what two of them need lives in `tutelage.study.miniature`
(the student, its tasks, the paired seeds) or further down.
"""
