"""Liquid water at constant pressure: density, and the oxygen–oxygen radial distribution by mdtraj.

python examples/2_water_box.py runs/demo/model.pt [--short] [--head gfn2]

The shipped labels have periodic boxes of water at gfn2 alone; dft and cctz know water up to the trimer and learn the rest from gfn2, so
that a density at these levels is an extrapolation.
"""

import argparse
from pathlib import Path

import ase.build
import mdtraj
import numpy as np
from ase import Atoms
from matplotlib.figure import Figure

from mfmd import md, progress

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--short", action="store_true")
parser.add_argument("--head", default="gfn2")
parser.add_argument("--molecules", type=int, default=64)
parser.add_argument("--out", default="runs/water_box")
arguments = parser.parse_args()

# Molecules in random orientations on a lattice, at 0.95 g/cm³.
out, n = Path(arguments.out), arguments.molecules
out.mkdir(parents=True, exist_ok=True)
side = (n * 18.015 / 0.602214 / 0.95) ** (1 / 3)  # Å
sites = int(np.ceil(n ** (1 / 3)))
rng = np.random.default_rng(1)
box = Atoms(cell=[side] * 3, pbc=True)
for site in list(np.ndindex(sites, sites, sites))[:n]:
    molecule = ase.build.molecule("H2O")
    molecule.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
    molecule.positions += (np.array(site) + 0.5) * side / sites
    box += molecule
box.write(out / "box.xyz", format="extxyz")

times = {"equilibrate": 0.005, "time": 0.05, "every": 0.005, "checkpoint": 0.05} if arguments.short else {
    "equilibrate": 2.0, "time": 20.0, "every": 0.05, "checkpoint": 1.0
}  # fmt: skip
folder = str(out / arguments.head)
with progress.told():
    md.run(md.Settings(arguments.model, str(out / "box.xyz"), folder, ensemble="npt", head=arguments.head, friction=5.0, **times))

trajectory = mdtraj.load(out / arguments.head / "trajectory.dcd", top=out / arguments.head / "topology.pdb")
density = n * 18.015 / 0.602214 / (1e3 * trajectory.unitcell_volumes)  # g/cm³, from nm³
half = density[len(density) // 2 :]
oxygens = trajectory.topology.select("element O")
r, g = mdtraj.compute_rdf(trajectory[len(trajectory) // 2 :], trajectory.topology.select_pairs(oxygens, oxygens), r_range=(0.2, side / 20))
figure = Figure(figsize=(5, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(10 * r, g)
axes.set_xlabel("O–O distance, Å")
axes.set_ylabel("g(r)")
figure.savefig(out / f"rdf_{arguments.head}.png", dpi=150)
print(
    f"\n{arguments.head}: density of the second half {half.mean():.3f} ± {half.std():.3f} g/cm³; first peak of g(r) at {10 * r[g.argmax()]:.2f} Å"
)
