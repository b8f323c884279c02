"""One file per strategy: its docstring is the summary, `build` makes the learner."""
