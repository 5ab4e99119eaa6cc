"""The seqtex command."""
