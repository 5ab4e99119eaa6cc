"""Terminal output of the commands: events and tables, progress, help."""
