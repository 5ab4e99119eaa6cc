"""The two-branch diffusion transformer, its weights and its optimisers."""
