"""The dataset builder: preflight, load, filter, unwrap, render, bake, shard."""
