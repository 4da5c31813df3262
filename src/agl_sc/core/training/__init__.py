"""The training recipe: plan, loop, rounds, checkpoints, processes."""
