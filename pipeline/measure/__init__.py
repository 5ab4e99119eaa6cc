"""What is measured on an asset: one ledger column each."""
