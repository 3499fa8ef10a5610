"""A file a format; each yields the fields of a Structure as a dict, in the units of the file.

| ending | format |
|---|---|
| .xyz, .extxyz | extended XYZ |
| .db, .json | ASE databases |
| .npz | arrays (Z, R and one a label), as MD17, rMD17 and sGDML have them |
| .h5, .hdf5 | groups of such arrays, as ANI-1x and ANI-1ccx have them; NaN is a missing label |
| .parquet | metadata.parquet beside data.lmdb, the set of arXiv 2506.14963; a .json beside these is a list of their idx |
"""
