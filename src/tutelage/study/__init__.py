"""Studies: seeds, statistics, the store of runs, the league table and its report."""
