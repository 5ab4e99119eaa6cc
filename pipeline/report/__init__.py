"""HTML reports of a dataset and of a demo run."""
