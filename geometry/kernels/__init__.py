"""Compiled loops: numba, on plain threads, without the interpreter lock."""
