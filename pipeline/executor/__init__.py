"""Run a build: jobs of assets on Ray, each asset in a sandboxed child."""
