"""One file per paper: the claim, the arms, the seeds and the primary metric, fixed before the first full run, and how they are composed.

    tutelage replicate sec            # about a minute per four arms and ten seeds; writes results/sec.json
    tutelage replicate sec --smoke    # seconds; only shows that it runs

A replication is a function registered under the paper's slug. The first line of its docstring is the claim; it returns a
`tutelage.study.replicate.Replication`. Replications never import one another: what two of them need lives in `tutelage.study.miniature`
(the student, its tasks, the paired seeds) or further down.
"""
