"""What crosses a boundary between rooms: frozen, shaped, versioned records and their encodings."""
