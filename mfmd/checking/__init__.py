"""Whether a model gives right numbers on the machine at hand."""
