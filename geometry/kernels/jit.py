"""Compile options of the texture look-up kernels."""

from typing import Any

BORROWING: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": False}
"""Options of `numba.njit` for functions that make no arrays and only use those of their caller. Without `_nrt` numba
counts references to each array of a surface at each call: fifteen times the time of colouring a view."""
