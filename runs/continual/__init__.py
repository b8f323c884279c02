"""`sparse-agents continual`: runs of continual learners over several seeds."""
