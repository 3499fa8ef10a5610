"""Which structures to label next, and at which level."""
