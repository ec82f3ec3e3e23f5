"""The training loop in one process: steps, checkpoints, memory plan, prediction."""
