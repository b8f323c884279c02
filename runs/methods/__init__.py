"""Every method of the core on one task: what it reaches, how fast, and what it costs."""
