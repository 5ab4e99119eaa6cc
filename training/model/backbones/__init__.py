"""Video models that SeqTex can start from: one family of weights a module."""
