"""Tables that users bring: scores to select assets by, and captions."""
