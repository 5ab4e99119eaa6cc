"""The dataset builder: preflight, load, judge, unwrap, render, bake, shard."""
