"""Pure functions on arrays: frames, cameras, rasterisation, texture lookup. No I/O, no Ray, no torch."""
