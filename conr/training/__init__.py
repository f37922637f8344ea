"""Training: the loop, its schedules and checkpoints, and the two objectives that run in it."""
