"""Blender as a child process. `host` and `lit` are ours; `worker/` runs in Blender's own interpreter, which
`make blender` sets up, and is never imported here."""
