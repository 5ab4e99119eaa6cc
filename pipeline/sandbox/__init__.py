"""Run code on untrusted bytes in a child with limits. docs/decisions/0007-isolation.md."""
