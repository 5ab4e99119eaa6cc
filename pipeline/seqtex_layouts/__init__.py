"""Read and write the folder layouts of SeqTex's own data."""
