"""From a surface to one UV layout in the unit square."""
