"""Sources of assets: each lists `MeshRef`s."""
