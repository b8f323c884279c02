"""Studies: grids of runs, done by several processes and continued until all are there."""
