"""Look after a built dataset: status, failures, merge, what-if."""
