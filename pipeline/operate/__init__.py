"""A dataset in operation: how far it is, what failed and why, what to do again."""
