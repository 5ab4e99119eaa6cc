"""Side-by-side measurements; each prints a table. Not installed with the package."""
