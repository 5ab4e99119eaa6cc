"""SeqTex Forge: build texture datasets, train SeqTex on them, texture meshes."""
