"""`sparse-agents bench`: how fast and how small ours is beside what people use, measured in turn in one process."""
