"""Image, surface and distribution metrics."""
