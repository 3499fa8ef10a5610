"""Dynamics of ethanol in OpenMM driven by the highest level's head: a thermostat, then constant energy, each with a page of results.

Run by `make demo` after training; writes runs/demo/ethanol.pdb and the runs runs/demo/md/nvt and runs/demo/md/nve.
`python examples/demo.py torch` runs it through TorchForce, where openmmtorch is installed.
"""

import argparse
import warnings
from pathlib import Path

import ase.build
import mdtraj
from openmm import app, unit

import mfmd
from mfmd.engine import load_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("host", nargs="?", choices=["native", "torch", "python"], default="native")
HOST = parser.parse_args().host
OUT = Path("runs/demo")
MODEL = OUT / "model.pt"
HEAD = load_model(MODEL).levels[-1]


def topology(atoms):
    top = app.Topology()
    residue = top.addResidue("EOH", top.addChain())
    added = [top.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate(atoms.symbols)]
    distances = atoms.get_all_distances()
    for i in range(len(atoms)):
        for j in range(i):
            if distances[i, j] < (1.3 if 1 in atoms.numbers[[i, j]] else 1.7) and not (atoms.numbers[[i, j]] == 1).all():
                top.addBond(added[i], added[j])
    return top


atoms = ase.build.molecule("CH3CH2OH")
with open(OUT / "ethanol.pdb", "w") as file:
    app.PDBFile.writeFile(topology(atoms), atoms.positions * unit.angstrom, file)
same = {"host": HOST, "threads": 1, "every": 0.02, "report_heads": True}

# 20 ps of Langevin dynamics at 300 K, a frame every 20 fs.
nvt = OUT / "md" / "nvt"
summary = mfmd.md.run(mfmd.md.Settings(str(MODEL), str(OUT / "ethanol.pdb"), str(nvt), time=20.0, **same))
print(
    f"Langevin MD of ethanol with head {HEAD}: {summary['steps']} steps at {summary['ns_per_day']:.0f} ns/day, mean temperature {summary['temperature']:.0f} K"
)

# From there 10 ps at constant energy, in double precision: what the forces lose.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", mfmd.Note)  # that the velocities are those of the run before
    constant = mfmd.md.run(
        mfmd.md.Settings(
            str(MODEL),
            str(OUT / "ethanol.pdb"),
            str(OUT / "md" / "nve"),
            ensemble="nve",
            time=10.0,
            precision="double",
            continue_from=str(nvt),
            **same,
        )
    )

trajectory = mdtraj.load(str(nvt / "trajectory.dcd"), top=str(nvt / "topology.pdb"))
lengths = 10 * mdtraj.compute_distances(trajectory, [[a.index, b.index] for a, b in trajectory.topology.bonds])
print(
    f"{trajectory.n_frames} frames read back with mdtraj; longest bond {lengths.max():.2f} Å; at constant energy drift {constant['drift']:+.5f} meV/atom/ps"
)
print(f"results: {OUT / 'report.html'}, {nvt / 'report.html'}, {OUT / 'md' / 'nve' / 'report.html'}")
if (lengths > 2.0).any():
    raise SystemExit("error: a bond of ethanol broke; the model is not good enough for this run")
