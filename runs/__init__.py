"""Command-line runs: training, evaluation and the demo."""
