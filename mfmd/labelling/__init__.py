"""Making labels with codes of quantum chemistry: `mfmd label`. Nothing here imports torch."""
