"""SeqTex training and sampling on the shards that `pipeline` writes."""
