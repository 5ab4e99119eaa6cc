"""Compiled loops of the unwrap."""
