"""Flow matching: tasks, noise, encoders and the sampler."""
