"""Wavefront OBJ and its materials."""
