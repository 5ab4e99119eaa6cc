"""Publish a finished dataset: check licences and local paths, prepare the card, upload to a dataset hub."""
