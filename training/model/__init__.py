"""The SeqTex transformer and its weights."""
