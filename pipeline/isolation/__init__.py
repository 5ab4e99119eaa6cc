"""What the kernel can take away from a process that reads untrusted bytes. docs/decisions/0007-isolation.md."""
