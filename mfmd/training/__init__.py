"""From labelled structures to a model file, stage by stage."""
