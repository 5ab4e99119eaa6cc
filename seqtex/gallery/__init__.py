"""The gallery commands, and the pages of training and evaluation beside the assets."""
