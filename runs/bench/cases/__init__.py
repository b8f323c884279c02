"""One file per bench, named as the bench is; it has `FULL` and `QUICK` efforts and `measure(session, effort)`."""
