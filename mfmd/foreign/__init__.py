"""Weights of other packages, under our names; a file a package."""
