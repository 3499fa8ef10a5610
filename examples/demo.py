"""Langevin dynamics of ethanol in OpenMM driven by the highest level's head, and a page of results.

Run by `make demo` after training; writes into runs/demo: ethanol.pdb, nvt.dcd, nve.csv, md.png, report.md.
`python examples/demo.py torch` runs it through TorchForce, where openmmtorch is installed.
"""

import argparse
import csv
import json
import platform
import time
from datetime import date
from pathlib import Path

import ase.build
import matplotlib
import mdtraj
import numpy as np

import mfmd
from mfmd.engine import load_model

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import openmm
from openmm import app, unit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("host", nargs="?", choices=["native", "torch", "python"], default="native")
HOST = parser.parse_args().host
OUT = Path("runs/demo")
MODEL = OUT / "model.pt"
STEP = 0.5 * unit.femtosecond
HEAD = load_model(MODEL).levels[-1]
PLAN = json.loads(load_model(MODEL).metadata)["provenance"]["config"]["stages"]


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
top = topology(atoms)
system = mfmd.openmm.create_system(MODEL, top, head=HEAD, host=HOST, threads=1)
with open(OUT / "ethanol.pdb", "w") as file:
    app.PDBFile.writeFile(top, atoms.positions * unit.angstrom, file)

# 20 ps of Langevin dynamics at 300 K, a frame every 20 fs.
simulation = app.Simulation(
    top,
    system,
    openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, STEP),
    openmm.Platform.getPlatformByName("Reference"),
)
simulation.integrator.setRandomNumberSeed(1)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters += [
    app.DCDReporter(str(OUT / "nvt.dcd"), 40),
    app.StateDataReporter(str(OUT / "nvt.csv"), 40, time=True, potentialEnergy=True, temperature=True),
]
start, steps = time.perf_counter(), 40000
simulation.step(steps)
seconds = time.perf_counter() - start
ns_per_day = steps * STEP.value_in_unit(unit.nanosecond) / seconds * 86400
print(f"Langevin MD of ethanol with head {HEAD}: {steps} steps in {seconds:.1f} s, {ns_per_day:.1f} ns/day")

# From there 10 ps at constant energy, in double precision: what the forces lose.
state = simulation.context.getState(positions=True, velocities=True)
exact = mfmd.openmm.create_system(MODEL, top, head=HEAD, host=HOST, precision="double", threads=1, remove_cm_motion=False)
nve = app.Simulation(top, exact, openmm.VerletIntegrator(STEP), openmm.Platform.getPlatformByName("Reference"))
nve.context.setPositions(state.getPositions())
nve.context.setVelocities(state.getVelocities())
nve.reporters.append(app.StateDataReporter(str(OUT / "nve.csv"), 40, time=True, totalEnergy=True))
nve.step(20000)


def columns(path):
    with open(path) as file:
        rows = list(csv.reader(file))
    return np.array(rows[1:], float).T


t, total = columns(OUT / "nve.csv")
total = (total - total[0]) / mfmd.openmm.units.KJ_PER_MOL * 1e3 / len(atoms)
drift = np.polyfit(t - t[0], total, 1)[0]
time_nvt, _, temperature = columns(OUT / "nvt.csv")

trajectory = mdtraj.load(str(OUT / "nvt.dcd"), top=str(OUT / "ethanol.pdb"))
bonds = np.array([[a.index, b.index] for a, b in trajectory.topology.bonds])
lengths = 10 * mdtraj.compute_distances(trajectory, bonds)
# Carbon, carbon, oxygen, hydroxyl hydrogen of ASE's ethanol.
torsion = np.degrees(mdtraj.compute_dihedrals(trajectory, [[0, 1, 2, 3]])[:, 0])
broken = bool((lengths > 2.0).any())
print(f"{trajectory.n_frames} frames read back with mdtraj; longest bond {lengths.max():.2f} Å; drift {drift:+.5f} meV/atom/ps")

fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
axes[0].plot(time_nvt, temperature, lw=0.6)
axes[0].set(xlabel="time, ps", ylabel="temperature, K", title="Langevin, 300 K")
axes[1].plot(t - t[0], total, lw=0.8)
axes[1].set(xlabel="time, ps", ylabel="total energy, meV/atom", title=f"NVE, drift {drift:+.4f} meV/atom/ps")
axes[2].hist(torsion, bins=60, range=(-180, 180))
axes[2].set(xlabel="torsion C-C-O-H, °", ylabel="frames", title="mdtraj")
fig.savefig(OUT / "md.png", dpi=130)

errors = json.loads(load_model(MODEL).metadata)["provenance"]["errors"]["test"]
lines = [
    "# Demo: three levels of theory to molecular dynamics",
    "",
    f"{date.today()}, {platform.machine()}, {platform.processor() or platform.system()}; reprinted by `make demo`.",
    "",
    "| level | label | test labels | MAE | RMSE |",
    "|---|---|---|---|---|",
]
for key, row in errors.items():
    level, kind = key.split(".")
    measure = {"energy": "meV", "energy_per_atom": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}[kind]
    lines.append(
        f"| {level} | {kind.replace('_', ' ')} | {row['count']} | {1e3 * row['mae']:.1f} {measure} | {1e3 * row['rmse']:.1f} {measure} |"
    )
lines += [
    "",
    f"Ethanol, head `{HEAD}`, host `{HOST}`, 0.5 fs: **{ns_per_day:.1f} ns/day** (single precision, one thread),",
    f"mean temperature {temperature.mean():.0f} K, longest bond {lengths.max():.2f} Å, conserved energy drifts {drift:+.5f} meV/atom/ps (NVE, double).",
    "",
    *(
        f"![learning curve of stage {name}]({name}/learning_curve.png)"
        for name in (stage["name"] for stage in PLAN if stage["fit"] == "gradient")
    ),
    "![parity](parity_test.png)",
    "![molecular dynamics](md.png)",
]
(OUT / "report.md").write_text("\n".join(lines) + "\n")
print(f"results: {OUT / 'report.md'}")
if broken:
    raise SystemExit("error: a bond of ethanol broke; the model is not good enough for this run")
