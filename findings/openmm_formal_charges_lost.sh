#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.app: PDBxFile, Modeller, PDBReporter), with numpy 2.4.6
#
# Behaviour: atoms of a Topology have a formalCharge, which PDBFile reads and writes and most of
#   Modeller keeps. Modeller.addHydrogens() and addExtraParticles() set that of every atom
#   to None, also of ions that they have nothing to do with. PDBxFile neither reads
#   pdbx_formal_charge nor writes it (it writes "."), so that a PDB file that goes
#   through mmCIF and back has lost it. PDBReporter with atomSubset writes none, without it
#   all. There is no error or warning.
#
# Why it matters: None also stands for an atom of which nothing is known, so whatever sums the
#   formal charges (to say the charge of a molecule to a potential or a quantum chemistry
#   program) has 0 for an ion. Adding hydrogens is the first step of almost every setup
#   from a crystal structure, and these come as mmCIF.
#
# Expected: the charges that the topology or the file has, as from PDBFile and Modeller.delete().
#
# Seen on 2026-11-28 (Na+, Cl- and the oxygen of a water):
#   openmm 8.6.1, numpy 2.4.6
#   PDBFile                            {'NA': 1, 'CL': -1, 'O': None}
#   Modeller.delete of the water       {'NA': 1, 'CL': -1}
#   Modeller.add of nothing            {'NA': 1, 'CL': -1, 'O': None}
#   Modeller.addHydrogens              {'NA': None, 'CL': None, 'O': None}
#   Modeller.addExtraParticles         {'NA': None, 'CL': None}
#   PDBReporter                        {'NA': 1, 'CL': -1, 'O': None}
#   PDBReporter, atomSubset=[0, 1, 2]  {'NA': None, 'CL': None, 'O': None}
#   PDBxFile                           {'NA': None, 'CL': None, 'O': None}
#   PDBFile, written by PDBxFile       {'NA': None, 'CL': None, 'O': None}
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/python -m pip install -q --disable-pip-version-check openmm==8.6.1 numpy==2.4.6

cat > ions.pdb <<'PDB'
HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA1+
HETATM    2 CL    CL A   2       5.000   0.000   0.000  1.00  0.00          CL1-
HETATM    3  O   HOH A   3      10.000   0.000   0.000  1.00  0.00           O
END
PDB
cat > ions.cif <<'CIF'
data_ions
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.B_iso_or_equiv
_atom_site.pdbx_formal_charge
_atom_site.auth_seq_id
_atom_site.auth_comp_id
_atom_site.auth_asym_id
_atom_site.auth_atom_id
_atom_site.pdbx_PDB_model_num
HETATM 1 NA NA . NA  A 1 . ?  0.0 0.0 0.0 1.0 0.0  1 1 NA  A NA 1
HETATM 2 CL CL . CL  B 2 . ?  5.0 0.0 0.0 1.0 0.0 -1 2 CL  B CL 1
HETATM 3 O  O  . HOH C 3 . ? 10.0 0.0 0.0 1.0 0.0  ? 3 HOH C O  1
#
CIF
venv/bin/python - <<'PY'
import sys
import warnings
from importlib.metadata import version

import openmm
from openmm import app

warnings.simplefilter("error")  # a warning would count as "no longer silent"
pdb = app.PDBFile("ions.pdb")
water = app.ForceField("amber14/tip4pew.xml")


def modelled(step):
    modeller = app.Modeller(pdb.topology, pdb.positions)
    step(modeller)
    return modeller.topology


def without_water(modeller):
    modeller.delete([residue for residue in modeller.topology.residues() if residue.name == "HOH"])


def reported(**options):
    system = openmm.System()
    for atom in pdb.topology.atoms():
        system.addParticle(1.0)
    simulation = app.Simulation(pdb.topology, system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.reporters.append(app.PDBReporter("frame.pdb", 1, enforcePeriodicBox=False, **options))
    simulation.step(1)
    simulation.reporters.clear()  # closes the file
    return app.PDBFile("frame.pdb").topology


with open("again.cif", "w") as out:
    app.PDBxFile.writeFile(pdb.topology, pdb.positions, out)
found = {
    "PDBFile": pdb.topology,
    "Modeller.delete of the water": modelled(without_water),
    "Modeller.add of nothing": modelled(lambda m: m.add(app.Topology(), [])),
    "Modeller.addHydrogens": modelled(lambda m: m.addHydrogens()),
    "Modeller.addExtraParticles": modelled(lambda m: (without_water(m), m.addExtraParticles(water))),
    "PDBReporter": reported(),
    "PDBReporter, atomSubset=[0, 1, 2]": reported(atomSubset=[0, 1, 2]),
    "PDBxFile": app.PDBxFile("ions.cif").topology,
    "PDBFile, written by PDBxFile": app.PDBxFile("again.cif").topology,
}
found = {name: {a.name: a.formalCharge for a in topology.atoms() if a.element.symbol != "H"} for name, topology in found.items()}
print(f"openmm {version('openmm')}, numpy {version('numpy')}")
for name, charges in found.items():
    print(f"{name:34s} {charges}")
kept = {name for name, charges in found.items() if charges["NA"] == 1 and charges["CL"] == -1}
lost = {name for name, charges in found.items() if charges["NA"] is None and charges["CL"] is None}
as_recorded = (kept == {"PDBFile", "Modeller.delete of the water", "Modeller.add of nothing", "PDBReporter"}
               and lost == found.keys() - kept)
sys.exit(0 if as_recorded else "no longer as recorded")
PY
echo "as recorded"
