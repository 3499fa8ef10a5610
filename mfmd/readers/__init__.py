"""A file a format; each yields the fields of a data.Structure as a dict, in the units of the file."""
