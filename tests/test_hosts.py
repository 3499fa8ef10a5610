"""One body for every host: ASE, plain TorchScript, TorchForce, PythonForce."""

import pickle
import subprocess
import sys

import backends
import numpy as np
import pytest
from conftest import ethanol, random_cell

import mfmd
from mfmd import units
from mfmd.engine import InputError


@pytest.fixture(params=backends.HOSTS)
def host(request):
    if request.param in backends.NEEDS:
        pytest.importorskip(backends.NEEDS[request.param])
    return backends.HOSTS[request.param]


@pytest.fixture(params=backends.OPENMM)
def kind(request):
    """What create_force(host=…) takes."""
    pytest.importorskip(backends.OPENMM[request.param])
    return request.param


def python(code, *arguments):
    """Run code in a fresh process."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize("structure", ["molecule", "box"])
def test_equals_the_engine(host, model_file, precision, structure):
    atoms = ethanol() if structure == "molecule" else lower_triangular(random_cell(21, atoms=12))
    energy, forces, _ = backends.engine(model_file, "high", "double", "table")(atoms)
    e, f = host(model_file, "high", precision)(atoms)
    tolerance = {"single": 1e-5, "double": 1e-9}[precision]
    assert abs(e - energy) < tolerance * len(atoms)
    np.testing.assert_allclose(f, forces, rtol=tolerance, atol=tolerance * np.abs(forces).max() * 3)


def lower_triangular(atoms):
    """The cell as OpenMM wants it, in reduced form."""
    atoms.set_cell(np.diag(atoms.cell.lengths()) + [[0, 0, 0], [0.9, 0, 0], [-0.7, 0.5, 0]], scale_atoms=True)
    return atoms


def test_openmm_forces_by_finite_differences(model_file, kind):
    """In OpenMM's units, kJ/mol and nm: step 1e-5 nm, error below 1e-6 of the largest force (double, Reference)."""
    from openmm import unit

    atoms = lower_triangular(random_cell(22, atoms=10))
    c = backends.context(model_file, "high", atoms, kind)
    start = atoms.positions / units.ANGSTROM_PER_NM
    forces = c.getState(forces=True).getForces(asNumpy=True)._value
    h = 1e-5
    for i, a in ((0, 0), (3, 1), (7, 2), (9, 0)):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[i, a] += sign * h
            c.setPositions(moved * unit.nanometer)
            ends.append(c.getState(energy=True).getPotentialEnergy()._value)
        assert forces[i, a] == pytest.approx(-(ends[0] - ends[1]) / (2 * h), abs=1e-6 * np.abs(forces).max())


def test_ase_forces_and_stress_by_finite_differences(model_file):
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = random_cell(23, small=True, atoms=5)
    atoms.calc = mfmd.Calculator(model_file, "high", "double")
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6 * np.abs(forces).max())
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5, voigt=False), atol=1e-6 * np.abs(stress).max())


def test_subset_of_atoms(model_file, kind):
    """The model sees the chosen atoms alone and pushes no other."""
    atoms = ethanol()
    chosen = [6, 1, 2, 8, 0]
    force = mfmd.openmm.create_force(model_file, backends.topology(atoms), chosen, "low", kind, "double")
    c = backends.context_of_force(force, atoms)
    state = c.getState(energy=True, forces=True)
    energy, forces, _ = backends.engine(model_file, "low", radial="table")(atoms[chosen])
    assert state.getPotentialEnergy()._value / units.KJ_PER_MOL == pytest.approx(energy, rel=1e-12)
    got = state.getForces(asNumpy=True)._value
    np.testing.assert_allclose(got[chosen] / mfmd.openmm.FORCE_UNIT, forces, atol=1e-9)
    assert not np.delete(got, chosen, axis=0).any()


@pytest.mark.parametrize("structure", ["molecule", "box"])
def test_from_one_head_to_another(model_file, kind, structure):
    """E(λ) = (1 - λ) E_a + λ E_b, dE/dλ = E_b - E_a to 1e-10, and forces by finite differences at three λ."""
    import openmm
    from openmm import unit

    atoms = ethanol() if structure == "molecule" else lower_triangular(random_cell(25, atoms=8))
    ends = [backends.engine(model_file, head, radial="table")(atoms)[0] * units.KJ_PER_MOL for head in ("low", "high")]
    system = mfmd.openmm.create_system(model_file, backends.topology(atoms), heads=("low", "high"), host=kind, precision="double")
    c = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    start = atoms.positions / units.ANGSTROM_PER_NM
    assert c.getParameter("mfmd_lambda") == 1.0
    for value in (0.0, 0.3, 1.0):
        c.setParameter("mfmd_lambda", value)
        c.setPositions(start)
        state = c.getState(energy=True, forces=True, parameterDerivatives=kind != "python")
        assert state.getPotentialEnergy()._value == pytest.approx((1 - value) * ends[0] + value * ends[1], rel=1e-10)
        if kind != "python":  # which has no parameter derivatives
            assert state.getEnergyParameterDerivatives()["mfmd_lambda"] == pytest.approx(ends[1] - ends[0], rel=1e-10)
        forces, h, energies = state.getForces(asNumpy=True)._value, 1e-5, []
        for sign in (1, -1):
            moved = start.copy()
            moved[1, 0] += sign * h
            c.setPositions(moved * unit.nanometer)
            energies.append(c.getState(energy=True).getPotentialEnergy()._value)
        assert forces[1, 0] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6 * np.abs(forces).max())


def test_free_energy_between_two_levels(trained):
    """Of a diatomic molecule on a spring, by MBAR from simulations at three λ, against quadrature in one dimension: σ ≤ 0.05 kT, within 2 σ."""
    pymbar = pytest.importorskip("pymbar")
    import openmm
    from conftest import dimer
    from openmm import unit

    atoms, spring, kt = dimer(1.0), 1e5, 8.31446261815324e-3 * 300  # kJ/mol/nm², kJ/mol
    system = mfmd.openmm.create_system(
        trained[0], backends.topology(atoms), heads=("gfn2", "cctz"), host="native", precision="double", threads=1, remove_cm_motion=False
    )
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.1, spring)
    system.addForce(bond)
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 100 / unit.picosecond, 0.00025 * unit.picosecond)
    integrator.setRandomNumberSeed(5)
    c = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    c.setPositions(atoms.positions / units.ANGSTROM_PER_NM)
    windows, slopes = np.array([0.0, 0.5, 1.0]), np.empty((3, 300))
    for k, value in enumerate(windows):
        c.setParameter("mfmd_lambda", value)
        integrator.step(500)
        for n in range(300):
            integrator.step(100)
            slopes[k, n] = c.getState(energy=True, parameterDerivatives=True).getEnergyParameterDerivatives()["mfmd_lambda"] / kt
    shift = slopes.mean()
    mbar = pymbar.MBAR(windows[:, None] * (slopes.ravel() - shift)[None], np.full(3, 300))
    result = mbar.compute_free_energy_differences()
    correlated = max(pymbar.timeseries.statistical_inefficiency(x) for x in slopes)
    found, sigma = result["Delta_f"][0, -1] + shift, result["dDelta_f"][0, -1] * np.sqrt(correlated)

    r = np.linspace(0.07, 0.13, 801)  # nm
    logs = []
    for head in ("gfn2", "cctz"):
        evaluate = backends.engine(trained[0], head, radial="table")
        energies = np.array([evaluate(dimer(10 * x))[0] for x in r]) * units.KJ_PER_MOL + 0.5 * spring * (r - 0.1) ** 2
        logs.append(np.log(np.trapezoid(r**2 * np.exp(-(energies - energies.min()) / kt), r)) - energies.min() / kt)
    assert sigma <= 0.05, sigma
    assert abs(found - (logs[0] - logs[1])) < 2 * sigma


def test_terms_of_one_model(model_file, kind):
    """Weights, two parameters, and a group of their own: what a multiple-time-step or a free-energy scheme puts together."""
    atoms = ethanol()
    low, middle, high = (backends.engine(model_file, head, radial="table")(atoms)[0] for head in ("low", "middle", "high"))
    terms = [("low", -1.0), ("middle", 0.5, "a"), ("high", 2.0, "b"), ("low", 0.25, "b")]
    force = mfmd.openmm.create_force(
        model_file, backends.topology(atoms), host=kind, precision="double", terms=terms, parameters={"a": 0.2, "b": 1.5}
    )
    force.setForceGroup(3)
    c = backends.context_of_force(force, atoms)
    c.setParameter("a", 0.4)
    expected = -low + 0.4 * 0.5 * middle + 1.5 * (2 * high + 0.25 * low)
    assert c.getState(energy=True, groups={3}).getPotentialEnergy()._value / units.KJ_PER_MOL == pytest.approx(expected, rel=1e-12)
    assert c.getState(energy=True, groups={0}).getPotentialEnergy()._value == 0.0
    if kind != "python":
        slopes = c.getState(energy=True, parameterDerivatives=True).getEnergyParameterDerivatives()
        assert slopes["a"] / units.KJ_PER_MOL == pytest.approx(0.5 * middle, rel=1e-10)
        assert slopes["b"] / units.KJ_PER_MOL == pytest.approx(2 * high + 0.25 * low, rel=1e-10)


def test_heads_and_terms_that_cannot_be(model_file):
    pytest.importorskip("openmm")
    topology = backends.topology(ethanol())
    for options, words in (
        ({"head": "low", "heads": ("low", "high")}, "only one of head, heads and terms"),
        ({"heads": ("low",)}, "two levels"),
        ({"heads": ("low", "top")}, "has no head `top`"),
        ({"terms": []}, "terms are empty"),
        ({"terms": [("low", 1.0, "a")]}, "no default"),
    ):
        with pytest.raises(InputError, match=words):
            mfmd.openmm.create_force(model_file, topology, host="python", **options)


def test_native_force_refuses_a_system_of_fewer_atoms_and_a_broken_model(model_file):
    openmm = pytest.importorskip("openmm")
    force = mfmd.openmm.create_force(model_file, backends.topology(ethanol()), host="native")
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    with pytest.raises(openmm.OpenMMException, match="the System has 1"):
        openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    xml = openmm.XmlSerializer.serialize(system)
    middle = xml.index("safetensors=") + len(xml) // 4
    with pytest.raises(openmm.OpenMMException, match="a bond with one end"):
        openmm.XmlSerializer.deserialize(xml.replace('bonds=""', 'bonds="0 1 2"'))
    far = openmm.XmlSerializer.deserialize(xml.replace('bonds=""', 'bonds="0 100000000"'))
    for _ in range(8):
        far.addParticle(1.0)
    with pytest.raises(openmm.OpenMMException, match="acts on atom 100000000"):
        openmm.Context(far, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    with pytest.raises(openmm.OpenMMException, match="the model in the System"):
        openmm.XmlSerializer.deserialize(xml[:middle] + xml[middle + 40 :])


def test_a_barostat_moves_molecules_whole(trained):
    """The native force reports the topology's bonds, so that a molecule across the boundary is scaled as one."""
    openmm = pytest.importorskip("openmm")
    from openmm import app, unit

    atoms = ethanol()
    atoms.set_cell(np.eye(3) * 9.0)
    atoms.set_pbc(True)
    topology = backends.topology(atoms)
    members = list(topology.atoms())
    for a, b in ((0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (1, 6), (1, 7), (1, 8)):
        topology.addBond(members[a], members[b])
    assert isinstance(topology, app.Topology)
    system = mfmd.openmm.create_system(trained[0], topology, "gfn2", "native")
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1))
    c = openmm.Context(system, openmm.VerletIntegrator(0.0), openmm.Platform.getPlatformByName("Reference"))
    assert [sorted(m) for m in c.getMolecules()] == [list(range(9))]


CONTINUE = """
import sys
import mfmd
{"torch": mfmd.openmm.load_torchforce, "native": mfmd.openmm.load_native, "python": lambda: None}[sys.argv[3]]()
import openmm
system = openmm.XmlSerializer.deserialize(open(sys.argv[1]).read())
context = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(openmm.XmlSerializer.deserialize(open(sys.argv[2]).read()).getPositions())
print(repr(context.getState(energy=True).getPotentialEnergy()._value))
"""


def test_system_survives_xml_into_a_fresh_process(model_file, tmp_path, kind):
    import openmm

    c = backends.context(model_file, "high", ethanol(), kind, "single")
    state = c.getState(energy=True, positions=True, velocities=True)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(c.getSystem()))
    (tmp_path / "state.xml").write_text(openmm.XmlSerializer.serialize(state))
    run = python(CONTINUE, tmp_path / "system.xml", tmp_path / "state.xml", kind)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == state.getPotentialEnergy()._value


def test_checkpoints_and_copies(trained, kind):
    """A checkpoint of a Context goes on to the same bits, and a deep copy of the System is the same System."""
    import copy

    import openmm

    system = mfmd.openmm.create_system(trained[0], backends.topology(ethanol()), "gfn2", kind, "single", threads=1)

    def context(system):
        integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
        integrator.setRandomNumberSeed(3)
        return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))

    def walk(c):
        c.getIntegrator().step(20)
        return c.getState(positions=True).getPositions(asNumpy=True)._value

    c = context(system)
    c.setPositions(ethanol().positions / units.ANGSTROM_PER_NM)
    walk(c)
    saved = c.createCheckpoint()
    first = walk(c)
    again = context(copy.deepcopy(system))
    again.loadCheckpoint(saved)
    assert np.array_equal(first, walk(again))


def test_openmm_may_be_imported_before_torch(model_file, tmp_path):
    """OpenMM loads its plugins at import; those that need torch then fail, and must be loaded again."""
    pytest.importorskip("openmmtorch")
    import openmm.app

    atoms = ethanol()
    with open(tmp_path / "m.pdb", "w") as file:
        openmm.app.PDBFile.writeFile(backends.topology(atoms), atoms.positions, file)
    code = """
import sys, openmm, openmm.app
assert "torch" not in sys.modules
import mfmd
pdb = openmm.app.PDBFile(sys.argv[2])
system = mfmd.openmm.create_system(sys.argv[1], pdb.topology, host="torch")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions(pdb.positions)
print(context.getState(energy=True).getPotentialEnergy())
"""
    run = python(code, model_file, tmp_path / "m.pdb")
    assert run.returncode == 0, run.stderr


def test_contexts_in_threads(trained, kind):
    """Three contexts of one System at the same time give the bits of one alone."""
    from concurrent.futures import ThreadPoolExecutor

    import openmm

    system = mfmd.openmm.create_system(trained[0], backends.topology(ethanol()), "cctz", kind, "double", threads=1)

    def walk(_):
        c = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference"))
        c.setPositions(ethanol().positions / units.ANGSTROM_PER_NM)
        c.getIntegrator().step(50)
        return c.getState(positions=True).getPositions(asNumpy=True)._value

    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(walk, range(3)))
    assert all(np.array_equal(runs[0], run) for run in runs)


@pytest.mark.parametrize("kind", ["native", "torch"], indirect=True)
def test_energy_is_conserved(trained, kind):
    """20 ps NVE of ethanol at 0.5 fs, double: drift below 0.02 meV/atom/ps."""
    from openmm import unit

    atoms = ethanol()
    c = backends.context(trained[0], "cctz", atoms, kind, "double", threads=1)
    c.setVelocitiesToTemperature(300 * unit.kelvin, 7)
    energies = []
    for _ in range(200):
        c.getIntegrator().step(200)  # 0.1 ps
        state = c.getState(energy=True)
        energies.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    time = 0.1 * np.arange(1, 201)
    drift = np.polyfit(time, np.array(energies) / units.KJ_PER_MOL * 1e3 / len(atoms), 1)[0]
    assert abs(drift) < 0.02, f"{drift} meV/atom/ps"


def test_relaxation_of_a_crystal_and_a_path(model_file, trained):
    """FrechetCellFilter lowers the energy; NEB runs with a calculator per image."""
    from ase.filters import FrechetCellFilter
    from ase.mep import NEB
    from ase.optimize import BFGS

    atoms = random_cell(31, small=True, atoms=5)
    atoms.calc = mfmd.Calculator(model_file, "low", "double")
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(steps=5)
    assert atoms.get_potential_energy() < before

    ends = [ethanol(), ethanol()]
    ends[1].rattle(0.05, seed=1)
    images = [ends[0]] + [ends[0].copy() for _ in range(3)] + [ends[1]]
    calculator = mfmd.Calculator(trained[0], "dft")
    for image in images:
        image.calc = pickle.loads(pickle.dumps(calculator))
    neb = NEB(images, method="improvedtangent")
    neb.interpolate()
    BFGS(neb, logfile=None).run(fmax=0.5, steps=5)
    assert np.isfinite([image.get_potential_energy() for image in images]).all()


def test_copies_of_the_calculator(model_file, tmp_path):
    import copy
    import shutil

    path = shutil.copy(model_file, tmp_path / "gone.pt")
    calculator = mfmd.Calculator(path, "low", "double", report_heads=True)
    atoms = ethanol()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    assert set(calculator.results["heads"]) == {"low", "middle", "high"}
    assert calculator.results["heads"]["low"] == pytest.approx(energy, rel=1e-14)
    import os

    os.remove(path)
    for other in (copy.copy(calculator), copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        again = ethanol()
        again.calc = other
        assert again.get_potential_energy() == energy


def test_ase_results(model_file):
    atoms = random_cell(33, atoms=7)
    atoms.calc = mfmd.Calculator(model_file)
    assert atoms.calc.head == "high"
    assert atoms.get_potential_energy() == atoms.calc.results["free_energy"]
    assert atoms.calc.results["energies"].sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert atoms.get_stress().shape == (6,)
    with pytest.raises(Exception, match="stress needs"):
        molecule = ethanol()
        molecule.calc = mfmd.Calculator(model_file)
        molecule.get_stress()


def test_ase_never_imports_torch(model_file):
    code = """
import sys, mfmd, ase.build
atoms = ase.build.molecule("CH3CH2OH")
atoms.calc = mfmd.Calculator(sys.argv[1])
atoms.get_forces()
assert "torch" not in sys.modules and "openmm" not in sys.modules
"""
    run = python(code, model_file)
    assert run.returncode == 0, run.stderr


def test_unknown_host_and_atoms(model_file):
    pytest.importorskip("openmm")
    topology = backends.topology(ethanol())
    with pytest.raises(InputError, match="host is 'cuda'"):
        mfmd.openmm.create_force(model_file, topology, host="cuda")
    for atoms in ([99], [1, 1], []):
        with pytest.raises(InputError, match="atoms must be different indices"):
            mfmd.openmm.create_force(model_file, topology, atoms, host="python")


def test_force_of_a_box_refuses_to_be_that_of_a_molecule(model_file):
    pytest.importorskip("openmmtorch")
    import openmm

    atoms = lower_triangular(random_cell(24, atoms=6))
    force = mfmd.openmm.create_force(model_file, backends.topology(atoms), head="low", host="torch")
    force.setUsesPeriodicBoundaryConditions(False)
    c = backends.context_of_force(force, atoms)
    with pytest.raises(openmm.OpenMMException, match="another kind of box"):
        c.getState(energy=True)


def test_archive_for_openmm(model_file, tmp_path):
    """`mfmd export --for openmm` writes what create_force runs."""
    openmmtorch = pytest.importorskip("openmmtorch")
    from openmm import app

    atoms = ethanol()
    with open(tmp_path / "m.pdb", "w") as file:
        app.PDBFile.writeFile(backends.topology(atoms), atoms.positions, file)
    mfmd.openmm.write_archive(tmp_path / "force.pt", model_file, tmp_path / "m.pdb", precision="double")
    force = openmmtorch.TorchForce(str(tmp_path / "force.pt"))
    force.setOutputsForces(True)
    c = backends.context_of_force(force, atoms)
    energy = c.getState(energy=True).getPotentialEnergy()._value / units.KJ_PER_MOL
    assert energy == pytest.approx(backends.engine(model_file, "high", radial="table")(atoms)[0], rel=1e-12)


GROMACS = """
import ctypes, sys, zipfile
import numpy as np
import torch

path, given = sys.argv[1], np.load(sys.argv[2])
with zipfile.ZipFile(path) as archive:  # the libraries come before the model
    entry = next(name for name in archive.namelist() if name.endswith("/extra/extension_libs"))
    for library in archive.read(entry).decode().split(":"):
        ctypes.CDLL(library)
model = torch.jit.load(path, "cpu").eval()
inputs = [torch.tensor(given["positions"], dtype=torch.float32).requires_grad_(True), torch.tensor(given["numbers"], dtype=torch.int32)]
if "box" in given:
    inputs += [torch.tensor(given["box"], dtype=torch.float32), torch.tensor([True, True, True])]
for _ in range(3):
    energy, forces = model(*inputs)
assert "mfmd" not in sys.modules and energy.shape == () and forces.dtype == torch.float32
np.savez(sys.argv[2], energy=energy.item(), forces=forces.numpy())
"""


@pytest.mark.parametrize("periodic", [False, True])
def test_archive_for_gromacs(model_file, tmp_path, periodic):
    """Loaded and called as GROMACS' NNPot module does, in a process without mfmd: nm in single precision, kJ/mol."""
    pytest.importorskip("torch")
    atoms = lower_triangular(random_cell(24, atoms=9)) if periodic else ethanol()
    done = python(
        "import sys; from mfmd import cli; sys.argv = ['mfmd', 'export', *sys.argv[1:]]; cli.main()",
        model_file, "--for", "gromacs", "-o", tmp_path / "model.pt", "--head", "middle", "--precision", "double",
    )  # fmt: skip
    assert done.returncode == 0 and "nnpot-model-input2 = atom-numbers" in done.stdout, done.stderr
    box = {"box": atoms.cell.array / units.ANGSTROM_PER_NM} if periodic else {}
    np.savez(tmp_path / "given.npz", positions=atoms.positions / units.ANGSTROM_PER_NM, numbers=atoms.numbers, **box)
    done = python(GROMACS, tmp_path / "model.pt", tmp_path / "given.npz")
    assert done.returncode == 0, done.stderr
    got, (energy, forces) = np.load(tmp_path / "given.npz"), backends.ase(model_file, "middle")(atoms)
    assert got["energy"] / units.KJ_PER_MOL == pytest.approx(energy, abs=2e-5)
    np.testing.assert_allclose(got["forces"] / (units.KJ_PER_MOL * units.ANGSTROM_PER_NM), forces, atol=1e-5 * np.abs(forces).max())


def test_exports_that_cannot_be(model_file, tmp_path):
    for more, sentence in ((["openmm"], "name a PDB file"), (["gromacs", "--topology", "x.pdb"], "leave it out")):
        code = "import sys; from mfmd import cli; sys.argv = ['mfmd', 'export', *sys.argv[1:]]; cli.main()"
        done = python(code, model_file, "-o", tmp_path / "model.pt", "--for", *more)
        assert done.returncode == 1 and sentence in done.stderr


def test_mixed_system_of_openmm_ml(model_file):
    """The model on one of two molecules: λ = 0 is the force field, λ = 1 the model on the one and the force field on the rest."""
    pytest.importorskip("openmmml")
    import openmm
    from openmmml import MLPotential

    first, second = ethanol(), ethanol()
    second.positions += [7.0, 0.5, 0.0]
    both = first + second
    mm = openmm.System()
    bonds, charges = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    for k in range(18):
        mm.addParticle(12.0)
        charges.addParticle(0.1 * (-1) ** k, 0.3, 0.2)
    for k in (0, 9):
        bonds.addBond(k, k + 1, 0.12, 1000.0)
    mm.addForce(bonds)
    mm.addForce(charges)
    mixed = MLPotential("mfmd", modelPath=str(model_file)).createMixedSystem(
        backends.topology(both), mm, list(range(9)), interpolate=True, head="low", precision="double"
    )
    c, plain = backends.context_of_system(mixed, both), backends.context_of_system(mm, both)
    c.setParameter("lambda_interpolate", 0.0)
    np.testing.assert_allclose(backends.energy_and_forces(c)[1], backends.energy_and_forces(plain)[1], atol=1e-7)
    without, forces_without = backends.energy_and_forces(c)
    c.setParameter("lambda_interpolate", 1.0)
    energy, forces = backends.energy_and_forces(c)
    inner, inner_forces, _ = backends.engine(model_file, "low", radial="table")(first)
    alone = openmm.System()
    for _ in range(9):
        alone.addParticle(12.0)
    alone_bonds, alone_charges = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    alone_bonds.addBond(0, 1, 0.12, 1000.0)
    for k in range(9):
        alone_charges.addParticle(0.1 * (-1) ** k, 0.3, 0.2)
    alone.addForce(alone_bonds)
    alone.addForce(alone_charges)
    replaced, replaced_forces = backends.energy_and_forces(backends.context_of_system(alone, first))
    assert energy - without == pytest.approx(inner - replaced, rel=1e-8)
    np.testing.assert_allclose((forces - forces_without)[:9], inner_forces - replaced_forces, atol=1e-6)
    np.testing.assert_allclose((forces - forces_without)[9:], 0, atol=1e-9)


def test_openmm_ml_stays_light():
    """Importing openmmml loads every entry point; ours must bring neither torch nor the engine."""
    pytest.importorskip("openmmml")
    run = python("import sys, openmmml; assert not {'torch', 'mfmd.engine', 'mfmd.hosts.openmm'} & set(sys.modules), 'heavy'")
    assert run.returncode == 0, run.stderr
    run = python("from openmmml import MLPotential; import openmm.app; MLPotential('mfmd').createSystem(openmm.app.Topology())")
    assert "needs modelPath" in run.stderr
    for arguments, words in (("charge=1", "charge is"), ("haed='gfn2'", "no argument 'haed'")):
        run = python(
            f"from openmmml import MLPotential; import openmm.app; MLPotential('mfmd', modelPath='m').createSystem(openmm.app.Topology(), {arguments})"
        )
        assert words in run.stderr


def test_build_host(tmp_path, model_file, monkeypatch, capsys):
    """What `mfmd build-host openmm` compiles loads; without it, or without a compiler, one sentence."""
    pytest.importorskip("openmm")
    import shutil

    from mfmd import cli, engine
    from mfmd.hosts import build

    folder = tmp_path / "mfmd"
    folder.mkdir()
    shutil.copy(engine.LIBRARY_DIR / "libmfmd.so", folder)
    (folder / "libmfmd_openmm-1.0.so").write_text("of another version")
    library = build.compile_host("openmm", engine.LIBRARY_DIR / "csrc", folder)
    assert list(folder.glob("libmfmd_openmm*")) == [library]
    run = python("import openmm, sys; print(openmm.Platform.loadPluginLibrary(sys.argv[1]))", library)
    assert run.returncode == 0, run.stderr

    monkeypatch.setattr(mfmd.openmm, "native_library", lambda: tmp_path / "none.so")
    with pytest.raises(engine.HostError, match="mfmd build-host openmm"):
        mfmd.openmm.load_native()
    monkeypatch.setenv("CXX", "no-such-compiler")
    for host in build.HOSTS:
        monkeypatch.setattr("sys.argv", ["mfmd", "build-host", host])
        with pytest.raises(SystemExit):
            cli.main()
        error = capsys.readouterr().err
        assert "no C++ compiler" in error or (host != "openmm" and f"{host} is not installed here" in error)
