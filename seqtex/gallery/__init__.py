"""Pages of the gallery beside the assets: training, evaluation, and generated textures."""
