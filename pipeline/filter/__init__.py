"""Measure assets and apply the filter rules."""
