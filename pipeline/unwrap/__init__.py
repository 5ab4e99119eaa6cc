"""Give a mesh UV coordinates: its own where they are good, new charts otherwise."""
