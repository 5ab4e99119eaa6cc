"""Records that cross folders and processes: frozen, shaped, versioned, with their encodings."""
