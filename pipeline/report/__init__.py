"""The gallery of a dataset: static HTML pages."""
