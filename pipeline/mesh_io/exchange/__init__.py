"""PLY, STL, OFF, 3MF and COLLADA, read into the indexed polygons that an OBJ is, too."""
