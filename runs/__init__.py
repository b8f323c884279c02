"""The command: runs, their directories and checkpoints, studies of many and their reports."""
