"""Train and compare variants of the model."""
