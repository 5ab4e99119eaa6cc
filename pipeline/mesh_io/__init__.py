"""Read meshes from glTF, OBJ and their side files; write glTF."""
