"""SeqTex's own data layouts: written from a dataset, and read into one."""
