"""Render what a sample holds: views, UV maps and lit images."""
