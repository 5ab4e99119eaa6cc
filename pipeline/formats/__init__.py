"""Readers of untrusted mesh files: every offset, count and path is checked before it is used."""
