"""Images that a model gets beside the noisy colours, and the registry of their kinds."""
