"""State, score, step, loop, checkpoint, metrics, evaluate, report."""
