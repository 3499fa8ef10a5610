"""Runs of nanoseconds by each host, in blocks that each begin from a file of the one before; and what physics says of their energies and volumes.

Every block begins a new simulation. Units: eV, Å, ps, K.
"""

import abc
import csv
import fcntl
import json
import time

import ase
import ase.build
import ase.io
import ase.units
import conftest
import numpy as np
from soak.water import DENSITIES, of_water, waters

from mfmd import units, whole
from mfmd.config import write_json
from mfmd.engine import load_model, model_path

KELVIN, FRICTION, STEP = 300.0, 1.0, 0.0005  # friction in 1/ps
EVERY = 0.05  # ps, between samples
BLOCK = 40.0  # s, of a block
SETTLED = 2.0  # ps at most, and a quarter of a run at most, that are not looked at
MEAN, VARIANCE, DRIFT = 0.01, 0.05, 0.02  # allowed: of kinetic energies, beside four standard errors; meV/atom/ps
BLOCKS = 32  # at least, of which a standard error is made
ERRORS = 0.02, 0.1  # standard errors at most, of means and variances; what drifts or jumps has larger ones


# ------------------------------------------------------------------------------------------------ structures


def ethanol():
    return ase.build.molecule("CH3CH2OH")


def gas():
    """Atoms without any interaction, whose volumes at constant pressure are known, Gamma(N + 1) times kT / P; so heavy and thin that they hardly meet."""
    return ase.Atoms("Rn64", 200.0 * np.array(list(np.ndindex(4, 4, 4))), cell=[800.0] * 3, pbc=True)


def of_no_interaction(path):
    import torch

    from mfmd.training.heads import TABLE, MLPHead
    from mfmd.training.model import Model, TensorNet

    torch.manual_seed(0)
    model = Model(TensorNet(16, 0, 4.0, 1, 4), {"tip3p": MLPHead(16, 1.0, np.zeros(TABLE), zero_start=True)})
    conftest.write(model, path, [86], states={"tip3p": [(0, 1)]})


# ------------------------------------------------------------------------------------------------ hosts


class Run(abc.ABC):
    """A structure in an ensemble by a host: `asked` ps of it. `center` : whether its centre of mass moves; `needs` : a module."""

    center, needs = True, "openmm"

    def __init__(self, structure, ensemble, asked, pressure=1.0, host="native"):
        self.structure, self.ensemble, self.asked, self.host, self.pressure = structure, ensemble, asked, host, pressure

    @property
    def level(self):
        return "cctz" if self.structure is ethanol else "tip3p"

    def model(self, folder):
        """The file of the model, made on first use, or its name."""
        if self.structure is ethanol:
            return "mfmd:chno"
        path = folder.parent / f"{self.structure.__name__}.pt"
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                {waters: of_water, gas: of_no_interaction}[self.structure](path)
        return path

    def relaxed(self, folder):
        """At a minimum near by."""
        from ase.optimize import LBFGS

        from mfmd.hosts.ase import Calculator

        atoms = self.structure()
        atoms.calc = Calculator(self.model(folder), self.level, threads=1)
        LBFGS(atoms, logfile=None).run(fmax=0.1, steps=200)
        atoms.calc = None
        return atoms

    @abc.abstractmethod
    def block(self, folder, picoseconds, number):
        """[(kinetic energy, total energy, volume)] at every EVERY ps of the next block."""


class ByMD(Run):
    """mfmd md, which is made longer."""

    center = False

    def block(self, folder, picoseconds, number):
        from mfmd import md

        start = folder / "start.xyz"
        if not start.exists():
            self.structure().write(start, format="extxyz")
        log = folder / "run" / "log.csv"
        before = len(log.read_text().splitlines()) - 1 if log.exists() else 0
        md.run(
            md.Settings(
                str(self.model(folder)), str(start), str(folder / "run"), ensemble=self.ensemble, time=(before * EVERY) + picoseconds, every=EVERY, checkpoint=10.0,
                head=self.level, equilibrate=2.0, threads=1, host=self.host, pressure=self.pressure, friction=FRICTION,
            )
        )  # fmt: skip
        with open(log) as file:
            rows = list(csv.DictReader(file))[before:]
        volume = "Box Volume (nm^3)"
        kinetic, total = (
            [float(row[key]) / units.KJ_PER_MOL for row in rows] for key in ("Kinetic Energy (kJ/mole)", "Total Energy (kJ/mole)")
        )
        return list(zip(kinetic, total, [float(row.get(volume, 0)) * units.ANGSTROM_PER_NM**3 for row in rows], strict=True))


class ByTorchForce(ByMD):
    needs = "openmmtorch"

    def __init__(self, *of):
        super().__init__(*of, host="torch")


class ByMultipleTimeSteps(Run):
    """The cheap level at every step, and what the dearest adds at every other one."""

    center = False

    def block(self, folder, picoseconds, number):
        import openmm
        from openmm import unit

        import mfmd
        from mfmd import md

        atoms = self.structure()
        topology, positions = md.topology_of(atoms)
        model = load_model(self.model(folder))
        cheapest, *_, dearest = model.levels
        system = mfmd.openmm.create_system(model, topology, cheapest, "native", threads=1)
        slow = mfmd.openmm.create_force(model, topology, terms=[(dearest, 1.0), (cheapest, -1.0)], threads=1)
        slow.setForceGroup(1)
        system.addForce(slow)
        groups, dt = [(0, 2), (1, 1)], 2 * STEP * unit.picosecond
        if self.ensemble == "nvt":
            integrator = openmm.MTSLangevinIntegrator(KELVIN, FRICTION / unit.picosecond, dt, groups)
            integrator.setRandomNumberSeed(number + 1)
        else:
            integrator = openmm.MTSIntegrator(dt, groups)
        context, kept = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference")), folder / "state.xml"
        if kept.exists():
            context.setState(openmm.XmlSerializer.deserialize(kept.read_text()))
        else:
            context.setPositions(positions * unit.angstrom)
            md.minimize(context)
            context.setVelocitiesToTemperature(2 * KELVIN, 1)
        samples = []
        for _ in range(round(picoseconds / EVERY)):
            integrator.step(round(EVERY / (2 * STEP)))
            state = context.getState(energy=True)
            kinetic, potential = (energy._value / units.KJ_PER_MOL for energy in (state.getKineticEnergy(), state.getPotentialEnergy()))
            samples.append((kinetic, kinetic + potential, atoms.cell.volume))
        kept.write_text(openmm.XmlSerializer.serialize(context.getState(positions=True, velocities=True, parameters=True)))
        return samples


class ByASE(Run):
    needs = "ase"

    def block(self, folder, picoseconds, number):
        from ase.md.langevin import Langevin
        from ase.md.nose_hoover_chain import IsotropicMTKNPT
        from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
        from ase.md.verlet import VelocityVerlet

        from mfmd.hosts.ase import Calculator

        rng, kept, fs = np.random.default_rng(number), folder / "state.traj", ase.units.fs
        atoms = ase.io.read(kept) if kept.exists() else self.relaxed(folder)
        atoms.calc = Calculator(self.model(folder), self.level, threads=1)
        if not kept.exists():
            MaxwellBoltzmannDistribution(atoms, temperature_K=2 * KELVIN, rng=rng)  # of which half becomes potential energy
        step = 1e3 * STEP * fs
        if self.ensemble == "nvt":
            moves = Langevin(atoms, step, temperature_K=KELVIN, friction=1e-3 * FRICTION / fs, fixcm=False, rng=rng)
        elif self.ensemble == "npt":
            moves = IsotropicMTKNPT(atoms, step, KELVIN, self.pressure * ase.units.bar, tdamp=100 * fs, pdamp=1000 * fs)
        else:
            moves = VelocityVerlet(atoms, step)
        samples = []
        for _ in range(round(picoseconds / EVERY)):
            moves.run(round(EVERY / STEP))
            samples.append((atoms.get_kinetic_energy(), atoms.get_total_energy(), atoms.cell.volume))
        atoms.calc = None
        atoms.write(kept)
        return samples


class ByLAMMPS(Run):
    needs = "lammps"

    def block(self, folder, picoseconds, number):
        from mfmd.hosts import lammps

        elements = "H O" if self.structure is waters else "C H O"
        if not (folder / "data").exists():
            atoms = self.relaxed(folder)
            if not atoms.pbc.any():
                atoms.center(20.0)
            ase.io.write(folder / "data", atoms, format="lammps-data", specorder=elements.split(), masses=True)
        periodic, going_on = self.structure is not ethanol, (folder / "restart").exists()
        moves = {
            "nvt": [f"fix moves all langevin {KELVIN} {KELVIN} {1 / FRICTION} {number + 1}", "fix also all nve"], "nve": ["fix moves all nve"],
            "npt": [f"fix moves all npt temp {KELVIN} {KELVIN} 0.1 iso {self.pressure} {self.pressure} 1.0", "compute_modify moves_temp extra/dof 0"],
        }[self.ensemble]  # fmt: skip
        begin = ["atom_style atomic", "atom_modify map yes", f"boundary {'p p p' if periodic else 's s s'}", "read_data data"]
        script = [
            "units metal", *(["read_restart restart"] if going_on else begin),
            f"pair_style mfmd head {self.level}", f"pair_coeff * * {model_path(self.model(folder))} {elements}", f"timestep {STEP}",
            *([] if going_on else [f"velocity all create {2 * KELVIN} 7 loop geom dist gaussian mom no"]), *moves,
            "thermo_style custom step ke etotal vol", "thermo_modify format float %.12g norm no", f"thermo {round(EVERY / STEP)}",
            f"run {round(picoseconds / STEP)}", "write_restart next",
        ]  # fmt: skip
        said = lammps.run("\n".join(script) + "\n", folder).splitlines()
        (folder / "next").replace(folder / "restart")
        first = next(k for k, line in enumerate(said) if line.split()[:2] == ["Step", "KinEng"]) + 1
        rows = [line.split()[1:] for line in said[first:] if line.strip()[:1].isdigit()]  # mfmd's warnings come between
        return [tuple(map(float, row)) for row in rows[1 : 1 + round(picoseconds / EVERY)]]  # the first is where it began


class ByTorchSim(Run):
    needs = "torch_sim"

    def block(self, folder, picoseconds, number):
        import torch
        import torch_sim as ts
        from torch_sim.units import MetalUnits

        from mfmd.hosts.torchsim import MfmdModel

        torch.manual_seed(number)
        number_of = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
        kept, cpu = folder / "state.traj", torch.device("cpu")
        atoms = ase.io.read(kept) if kept.exists() else self.relaxed(folder)
        model = MfmdModel(self.model(folder), self.level, device=cpu, compute_stress=bool(atoms.pbc.all()))
        state, kT, dt = (
            ts.io.atoms_to_state([atoms], cpu, torch.float64),
            number_of(KELVIN * MetalUnits.temperature),
            number_of(STEP * MetalUnits.time),
        )
        gamma = number_of(FRICTION / MetalUnits.time)
        begin, step = {
            "nve": lambda: ts.integrators.nve(model, dt=dt, kT=kT, seed=number), "nvt": lambda: ts.integrators.nvt_langevin(model, dt=dt, kT=kT, gamma=gamma, seed=number),
            "npt": lambda: ts.integrators.npt_langevin(model, dt=dt, kT=kT, external_pressure=number_of(self.pressure * MetalUnits.pressure), alpha=gamma, seed=number),
        }[self.ensemble]()  # fmt: skip
        state, samples = begin(state), []
        momenta = torch.tensor(atoms.get_momenta() * ase.units.fs / (1e-3 * MetalUnits.time)) if kept.exists() else state.momenta * 2**0.5
        if self.ensemble == "npt":
            state.velocities = momenta / state.masses[:, None]
        else:
            state.momenta = momenta
        for _ in range(round(picoseconds / EVERY)):
            for _ in range(round(EVERY / STEP)):
                state = step(state)
            kinetic = float(ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta))
            samples.append((kinetic, kinetic + float(state.energy[0]), abs(float(torch.det(state.cell[0])))))
        (after,) = state.to_atoms()
        after.set_momenta(state.momenta.numpy() * (1e-3 * MetalUnits.time) / ase.units.fs)
        after.write(kept)
        return samples


HOSTS = {
    "OpenMM, native force": ByMD, "OpenMM, PythonForce": lambda *of: ByMD(*of, host="python"), "ASE": ByASE, "LAMMPS": ByLAMMPS, "TorchSim": ByTorchSim,
    "OpenMM, TorchForce": ByTorchForce,
}  # fmt: skip
RUNS = {
    **{f"ethanol, NVT, {name}": host(ethanol, "nvt", 10_000.0 if host is ByMD else 500.0) for name, host in HOSTS.items()},
    **{f"64 waters, {kind.upper()}, {name}": host(waters, kind, 100.0 if host is ByMD else 10.0) for kind in ("nve", "npt") for name, host in HOSTS.items()},
    "ethanol, NVT, multiple time steps": ByMultipleTimeSteps(ethanol, "nvt", 1000.0), "64 waters, NVE, multiple time steps": ByMultipleTimeSteps(waters, "nve", 10.0),
    "ideal gas, NPT, OpenMM, native force": ByMD(gas, "npt", 500.0, pressure=0.005),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ what physics says


def with_error(values):
    """The mean of a series, and its standard error: the largest by means of blocks, ever longer ones (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989))."""
    error, length = 0.0, 1
    while (count := len(values) // length) >= BLOCKS:
        means = values[: count * length].reshape(count, length).mean(1)
        error, length = max(error, float(means.std(ddof=1) / np.sqrt(count))), 2 * length
    return float(values.mean()), error


def near(what, value, error, limit, allowed=0.0):
    """A ratio to what physics says is one, and so well known that a drift would be seen."""
    assert abs(value - 1) <= allowed + 4 * error and error <= limit, f"{what} is {value:.4f} ± {error:.4f} times what it must be"


def figures(run, samples):
    """What a run was like. AssertionError where it cannot have been so."""
    kinetic, total, volume = samples.T
    assert np.isfinite(samples).all(), "a value is no number"
    structure, out = run.structure(), {}
    atoms = len(structure)
    free, kT = 3 * atoms - (0 if run.center else 3), KELVIN * ase.units.kB
    ratio, error = with_error(kinetic / (free * kT / 2))
    out["temperature"] = [KELVIN * ratio, KELVIN * error]
    if run.ensemble != "nve":
        near("the kinetic energy", ratio, error, ERRORS[0], MEAN)
    if run.ensemble == "nvt":
        out["variance of the kinetic energy"] = with_error((kinetic - kinetic.mean()) ** 2 / (free / 2 * kT**2))
        near("the variance of the kinetic energy", *out["variance of the kinetic energy"], ERRORS[1], VARIANCE)
    if run.ensemble == "nve":
        out["drift"] = float(1e3 * np.polyfit(EVERY * np.arange(len(total)), total, 1)[0] / atoms)
        assert abs(out["drift"]) <= DRIFT, f"the total energy drifts by {out['drift']:.4f} meV/atom/ps"
    if run.structure is waters and run.ensemble == "npt":
        out["density"] = with_error(structure.get_masses().sum() * ase.units._amu * 1e27 / volume)  # g/cm³
        assert DENSITIES[0] <= out["density"][0] <= DENSITIES[-1], f"{out['density'][0]:.2f} g/cm³ are beyond what the model was taught"
    if run.structure is gas:
        scale = kT / (run.pressure * ase.units.bar)
        out["mean volume"] = with_error(volume / ((atoms + 1) * scale))
        out["variance of the volume"] = with_error((volume - volume.mean()) ** 2 / ((atoms + 1) * scale**2))
        for what, limit in zip(("mean volume", "variance of the volume"), ERRORS, strict=True):
            near(f"the {what}", *out[what], limit)
    return out


def turn(folder, name, seed, seconds):
    """Blocks of a run for so long: what run.py adds up. Where something is wrong its folder stays under another name, and the run begins anew."""
    folder = folder / "dynamics" / name.replace(", ", "-").replace(" ", "-")
    try:
        return gone_on(RUNS[name], folder, time.monotonic() + seconds)
    except Exception:
        folder.rename(f"{folder}-wrong-{seed}")
        raise


def gone_on(run, folder, end):
    """Blocks of a run until it is as long as asked, or the time is over: its length so far, in ps, and what it was like."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, said = folder / "samples.npy", folder / "blocks.json"
    samples = np.load(kept) if kept.exists() else np.zeros((0, 3))
    blocks = json.loads(said.read_text()) if said.exists() else {"blocks": 0, "rate": 1 / BLOCK}
    while time.monotonic() < end and (left := run.asked - len(samples) * EVERY) > EVERY / 2:
        picoseconds = min(max(1.0, np.floor(blocks["rate"] * min(BLOCK, end - time.monotonic()))), left)
        begin = time.monotonic()
        new = run.block(folder, picoseconds, blocks["blocks"])
        assert len(new) == round(picoseconds / EVERY), f"{len(new)} samples of {picoseconds} ps"
        samples = np.concatenate([samples, new])
        assert np.isfinite(samples).all(), "a value is no number"
        blocks |= {"blocks": blocks["blocks"] + 1, "rate": picoseconds / (time.monotonic() - begin)}
        with whole.writing(kept) as file:
            np.save(file, samples)
        write_json(said, blocks)
    total = len(samples) * EVERY
    latest = figures(run, samples[round(min(SETTLED, total / 4) / EVERY) :]) if total >= run.asked else {}
    return {"total": total, "latest": latest | {"blocks": blocks["blocks"]}}
