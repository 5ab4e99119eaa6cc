"""The `seqtex` command: composes pipeline and training."""
