"""Around the training step: callbacks, checkpoints, strategies, loggers."""
