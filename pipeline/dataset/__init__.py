"""A dataset on disk: plan, shards, ledger, metadata, and the lock around them."""
