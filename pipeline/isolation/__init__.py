"""What the kernel can take away from a process that reads untrusted bytes. docs/decisions/0006-isolation.md."""
