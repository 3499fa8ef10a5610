"""A file a format; each yields the fields of a Structure as a dict, in the units of the file.

| ending | module | format | keys of its labels |
|---|---|---|---|
| .xyz, .extxyz | extxyz | extended XYZ | names in `info` and `arrays`; energy, forces, stress |
| .traj | trajectory | trajectories of ASE | likewise |
| .db, .json, .aselmdb | asedb | ASE databases; the last are fairchem's | names of key-value pairs and data; energy, forces, stress |
| .npz | arrays | arrays (Z, R and one a label): MD17, rMD17, sGDML, PhysNet, AIMNet | names of the arrays |
| .h5, .hdf5 | arrays | groups of such: ANI-1, -1x, -1ccx, -2x, SPICE, QM7-X; NaN is a missing label | names of the datasets |
| a folder | deepmd | systems of DeePMD-kit, in any depth | energy, forces, virial, or <key>.npy |
| .data | n2p2 | input.data of n2p2 and RuNNer | energy, forces |
| .json | qcschema | QCSchema, one result or a list of them | energy, forces |
| .parquet | multifidelity | the set of arXiv 2506.14963; also a .json of it, a list of idx | <method>.energy, <method>.forces |

Units are eV and Å in deepmd and multifidelity, Hartree and Bohr in qcschema, and by convention in n2p2, whose files do not say. What a file
may say itself: sGDML's e_unit and r_unit, SPICE's attributes `units`, SchNetPack's metadata of a database.
"""
