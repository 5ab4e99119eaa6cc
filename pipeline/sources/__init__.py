"""Where assets come from: each source lists `MeshRef`s."""
