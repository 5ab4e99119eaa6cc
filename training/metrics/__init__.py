"""How good views and textures are: image by image, over the surface, and as distributions."""
