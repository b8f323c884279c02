"""Reports: what a study says, how surely, and what it cost."""
