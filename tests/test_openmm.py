"""What OpenMM users do with the model, beyond what every host must pass."""

import backends
import numpy as np
import pytest
from backends import python
from conftest import changed, ethanol, need, random_cell
from host_contract import reduced

import mfmd
from mfmd import units
from mfmd.engine import LIBRARY_DIR, InputError


def test_free_energy_between_two_levels(trained):
    """Of a diatomic molecule on a spring, by MBAR from simulations at three λ, against quadrature in one dimension: σ ≤ 0.05 kT, within 2 σ."""
    pymbar = pytest.importorskip("pymbar")
    import openmm
    from conftest import dimer
    from openmm import unit

    atoms, spring, kt = dimer(1.0), 1e5, 8.31446261815324e-3 * 300  # kJ/mol/nm², kJ/mol
    system = mfmd.openmm.create_system(
        trained[0], backends.topology(atoms), heads=("gfn2", "cctz"), host="native", precision="double", threads=1, remove_cm_motion=False,
        allow_unseen_state=True,
    )  # fmt: skip
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
        evaluate = backends.engine(trained[0], head, radial="table", allow_unseen_state=True)  # of a radical
        energies = np.array([evaluate(dimer(10 * x))[0] for x in r]) * units.KJ_PER_MOL + 0.5 * spring * (r - 0.1) ** 2
        logs.append(np.log(np.trapezoid(r**2 * np.exp(-(energies - energies.min()) / kt), r)) - energies.min() / kt)
    assert sigma <= 0.05, sigma
    assert abs(found - (logs[0] - logs[1])) < 2 * sigma


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


def charged_topology(*formal):
    """Of ethanol; formal charges of its first atoms, None being nothing."""
    topology = backends.topology(ethanol())
    for atom, charge in zip(topology.atoms(), formal, strict=False):
        atom.formalCharge = charge
    return topology


@pytest.mark.parametrize("host", ["native", "python"])
def test_formal_charges_and_what_the_user_says(charged_file, host):
    """The sum of formal charges is the charge; where atoms have none the user's word counts, and where all have one it must be theirs."""
    openmm = pytest.importorskip("openmm")
    atoms = ethanol()

    def energy(topology, chosen=None, **said):
        force = mfmd.openmm.create_force(charged_file, topology, chosen, head="low", host=host, precision="double", threads=1, **said)
        return backends.energy_and_forces(backends.context_of_force(force, atoms))[0]

    engine = mfmd.engine.Engine(charged_file, "double")

    def wanted(charge, multiplicity, part=slice(None)):
        return engine.compute(atoms.positions[part], atoms.numbers[part], terms=[("low", 1.0)], charge=charge, multiplicity=multiplicity)[
            "energy"
        ]

    assert energy(charged_topology(2, None, -1)) == pytest.approx(wanted(1, 2), abs=1e-8)
    assert energy(charged_topology(2, None, -1), multiplicity=2) == pytest.approx(wanted(1, 2), abs=1e-8)
    assert energy(charged_topology(), charge=-1) == pytest.approx(wanted(-1, 2), abs=1e-8)
    with pytest.warns(UserWarning, match="add up to [+]1, and charge is -1, which is taken: 8 of 9 atoms have no formal charge"):
        assert energy(charged_topology(1), charge=-1) == pytest.approx(wanted(-1, 2), abs=1e-8)
    with pytest.raises(InputError, match="add up to [+]1, and charge is 0; correct one of them"):
        energy(charged_topology(*[1] + [0] * 8), charge=0)
    part = [1, 2, 3]  # C, O, H
    with pytest.raises(InputError, match="the 3 atoms of the model's part have an odd number of electrons, and neither"):
        energy(charged_topology(), part)
    for topology, said, state in (
        (charged_topology(None, None, -1), {}, (-1, 1)), (charged_topology(), {"charge": 1}, (1, 1)),
        (charged_topology(), {"charge": 0, "multiplicity": 2}, (0, 2)), (charged_topology(-1), {"multiplicity": 2}, (0, 2)),
    ):  # fmt: skip
        assert energy(topology, part, allow_unseen_state=True, **said) == pytest.approx(
            mfmd.engine.Engine(charged_file, "double", allow_unseen_state=True).compute(
                atoms.positions[part], atoms.numbers[part], terms=[("low", 1.0)], charge=state[0], multiplicity=state[1]
            )["energy"], abs=1e-8,
        )  # fmt: skip
    boxed = charged_topology()
    boxed.setPeriodicBoxVectors([openmm.Vec3(*v) for v in np.eye(3) * 5])
    with pytest.raises(InputError, match="multiplicity is 1, which 15 electrons cannot have"):  # a part is a molecule in any box
        energy(boxed, part, charge=0, multiplicity=1)


@pytest.mark.parametrize("host", ["native", "python", "torch"])
def test_fragments(charged_file, host):
    """Of chosen atoms, in the System's XML and copies of it too."""
    import copy

    openmm = pytest.importorskip(backends.OPENMM[host]) and pytest.importorskip("openmm")
    atoms, chosen = ethanol() + ethanol(), list(range(1, 18))
    atoms.positions[9:] += 50.0
    fragments = [(range(9, 18), 1, None), (range(1, 9), -1, 2)]
    options = {"head": "low", "host": host, "precision": "double", "threads": 1, "allow_unseen_state": True}
    force = mfmd.openmm.create_force(charged_file, backends.topology(atoms), chosen, fragments=fragments, **options)
    engine = mfmd.engine.Engine(charged_file, "double", allow_unseen_state=True)
    alone = [
        engine.compute(atoms.positions[k], atoms.numbers[k], terms=[("low", 1.0)], charge=charge, multiplicity=multiplicity)
        for k, charge, multiplicity in ((slice(1, 9), -1, 2), (slice(9, 18), 1, 2))
    ]
    c = backends.context_of_force(force, atoms)
    for system in (
        c.getSystem(),
        copy.deepcopy(c.getSystem()),
        openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(c.getSystem())),
    ):
        energy, forces = backends.energy_and_forces(backends.context_of_system(system, atoms))
        assert energy == pytest.approx(alone[0]["energy"] + alone[1]["energy"], abs=1e-8)
        np.testing.assert_allclose(forces[1:], np.concatenate([one["forces"] for one in alone]), atol=1e-8)
    for wrong, words in (
        ([(range(1, 9), 0, None)], "atom 9 is in none of the fragments"),
        ([(range(9), 0, None), (range(9, 18), 0, None)], "fragment 0 has atom 0, which is none of the model's"),
        ([(range(1, 10), 0, None), (range(9, 18), 0, None)], "atom 9 stands in fragments 0 and 1"),
        ([(range(1, 9), -1, 1), (range(9, 18), 0, 1)], "fragment 0: multiplicity is 1, which 21 electrons cannot have"),
    ):
        with pytest.raises(InputError, match=words):
            mfmd.openmm.create_force(charged_file, backends.topology(atoms), chosen, fragments=wrong, **options)
    with pytest.raises(InputError, match="leave out charge"):
        mfmd.openmm.create_force(charged_file, backends.topology(atoms), chosen, fragments=fragments, charge=0, **options)


def test_systems_of_before_and_of_other_states(charged_file):
    """XML that says no states is of a neutral molecule in its lowest multiplicity, as what needs no more is written; broken states are refused."""
    openmm = pytest.importorskip("openmm")

    def xml(**said):
        return openmm.XmlSerializer.serialize(
            mfmd.openmm.create_system(charged_file, backends.topology(ethanol()), "low", "native", "double", **said)
        )

    def energy(text):
        return backends.energy_and_forces(backends.context_of_system(openmm.XmlSerializer.deserialize(text), ethanol()))[0]

    plain, cation = xml(charge=0, multiplicity=1), xml(charge=1)
    assert "states=" not in plain and 'version="1"' in plain and 'states="1 2 "' in cation and 'version="2"' in cation
    wanted = backends.engine(charged_file, "low", radial="table")
    assert energy(plain) == pytest.approx(wanted(ethanol())[0], abs=1e-8)
    assert energy(cation) == pytest.approx(wanted(changed(info={"charge": 1}))[0], abs=1e-8)
    for broken, words in (
        ('states="1"', "not pairs"), ('states="1 1 "', "multiplicity is 1, which 25 electrons cannot have"), ('states="1 2 0 1"', "no fragment is said"),
    ):  # fmt: skip
        with pytest.raises(openmm.OpenMMException, match=words):
            energy(cation.replace('states="1 2 "', broken))
    with pytest.raises(openmm.OpenMMException, match="not one fragment an atom"):
        energy(cation.replace('fragment=""', 'fragment="0 0"'))


def test_reporters_know_the_state(charged_file, tmp_path):
    """The energies of heads.csv are the cation's, and frames that it saves say so."""
    import ase.io
    import openmm

    topology, said = backends.topology(ethanol()), {"charge": 1, "multiplicity": 2}
    system = mfmd.openmm.create_system(charged_file, topology, "low", "native", "double", **said)
    simulation = openmm.app.Simulation(topology, system, openmm.VerletIntegrator(0.0), openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(ethanol().positions / 10)
    simulation.reporters = [mfmd.openmm.HeadReporter(tmp_path / "heads.csv", 1, charged_file, topology, precision="double", **said)]
    simulation.step(1)
    table = np.genfromtxt(tmp_path / "heads.csv", delimiter=",", names=True)
    for head in ("low", "middle", "high"):
        assert table[head] == pytest.approx(backends.engine(charged_file, head, radial="table")(changed(info=said))[0], abs=1e-7)
    simulation.reporters[0].write(tmp_path / "far.xyz", ethanol().positions, None, {"step": 1})
    saved = ase.io.read(tmp_path / "far.xyz")
    assert (saved.info["charge"], saved.info["multiplicity"], saved.info["step"]) == (1, 2, 1)


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
    numbers = " ".join(map(str, ethanol().numbers)) + " "
    assert f'numbers="{numbers}"' in xml and 'threads="0"' in xml and 'weight="1"' in xml
    for right, wrong, words in (
        (f'numbers="{numbers}"', f'numbers="{numbers}x"', "`numbers` of the force is no list of whole numbers"),
        (f'numbers="{numbers}"', f'numbers="{numbers}9999999999"', "`numbers` of the force is no list of whole numbers"),
        ('threads="0"', 'threads="-2"', "`threads` of the force is -2"),
        ('weight="1"', 'weight="one"', "`weight` of the force is 'one', and no such number is wanted"),
        ('weight="1"', 'weight="1,5"', "`weight` of the force is '1,5', and no such number is wanted"),
        ('single="1"', 'single="yes"', "`single` of the force is 'yes'"),
        ('safetensors="', 'safetensors="*', "is not Base64"),
    ):
        assert right in xml
        with pytest.raises(openmm.OpenMMException, match=words):
            openmm.XmlSerializer.deserialize(xml.replace(right, wrong))
    many = openmm.XmlSerializer.deserialize(xml.replace('threads="0"', 'threads="5000"'))
    for _ in range(8):
        many.addParticle(1.0)
    with pytest.raises(openmm.OpenMMException, match="mfmd: threads must be from 1 to 4096"):
        openmm.Context(many, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
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


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_energy_does_not_drift(trained, kind):
    """20 ps NVE of ethanol at 0.5 fs, double: drift below 0.02 meV/atom/ps."""
    pytest.importorskip(backends.OPENMM[kind])
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


def on_cuda(path, atoms, chosen, precision):
    """Contexts of the model, or of it on the chosen atoms, on the platforms CUDA and Reference; precision : of OpenMM, and double of the engine too."""
    openmm = pytest.importorskip("openmm")
    if "CUDA" not in (openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())):
        pytest.skip("OpenMM has no platform CUDA here; openmm-cuda-12 or openmm-cuda-13 installs it")
    if not (LIBRARY_DIR / f"libmfmd_openmm_cuda-{openmm.version.short_version}.so").exists():
        pytest.skip("the native force was not compiled for the platform CUDA; `mfmd build-host openmm_cuda` does it")
    need("cuda")
    engine = "double" if precision == "double" else "single"
    for platform in ("CUDA", "Reference"):
        force = mfmd.openmm.create_force(path, backends.topology(atoms), chosen, host="native", heads=("low", "high"), precision=engine)
        if platform == "CUDA":
            openmm.Platform.getPlatformByName(platform).setPropertyDefaultValue("Precision", precision)
        yield backends.context_of_force(force, atoms, platform)


@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
@pytest.mark.parametrize("structure", ["molecule", "box", "part"])
def test_native_force_on_the_platform_cuda(model_file, structure, precision):
    """Energies, forces and dE/dλ, and where ten steps lead, as on the platform Reference."""
    atoms = reduced(random_cell(21, atoms=12)) if structure == "box" else ethanol()
    if structure == "part":
        atoms += ethanol()
        atoms.positions[:9] += [7.0, 0.5, 0.0]
    found = []
    for c in on_cuda(model_file, atoms, list(range(9, 18)) if structure == "part" else None, precision):
        c.setParameter("mfmd_lambda", 0.3)
        first = backends.energy_and_forces(c)
        slope = c.getState(parameterDerivatives=True).getEnergyParameterDerivatives()["mfmd_lambda"] / units.KJ_PER_MOL
        c.getIntegrator().setStepSize(1e-4)  # ps; the forces of random weights are large
        c.getIntegrator().step(10)
        last = c.getState(positions=True).getPositions(asNumpy=True)._value * units.ANGSTROM_PER_NM
        found.append((*first, slope, last))
    bound = 1e-7 if precision == "double" else 1e-4
    (energy, forces, slope, last), (wanted, of_reference, slope_wanted, last_wanted) = found
    assert energy == pytest.approx(wanted, abs=bound * len(atoms)) and slope == pytest.approx(slope_wanted, abs=bound * len(atoms))
    np.testing.assert_allclose(forces, of_reference, atol=bound * np.abs(of_reference).max())
    np.testing.assert_allclose(last, last_wanted, atol=10 * bound)
    if structure == "part":
        assert not forces[:9].any()


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

    atoms = reduced(random_cell(24, atoms=6))
    force = mfmd.openmm.create_force(model_file, backends.topology(atoms), head="low", host="torch")
    force.setUsesPeriodicBoundaryConditions(False)
    c = backends.context_of_force(force, atoms)
    with pytest.raises(openmm.OpenMMException, match="another kind of box"):
        c.getState(energy=True)


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


@pytest.mark.parametrize("what", ["NonbondedForce", "CustomNonbondedForce", "nothing"])
def test_a_mixed_system_is_periodic_as_its_system_is(what, model_file):
    """With a topology that has no box: ethanol cut by the boundary has the energy of ethanol in one piece, unless nothing is periodic."""
    pytest.importorskip("openmmml")
    import openmm
    from openmmml import MLPotential

    atoms = ethanol()
    atoms.set_cell(np.eye(3) * 12)
    topology = backends.topology(atoms)  # not periodic
    atoms.pbc = True
    atoms.wrap()
    mm = openmm.System()
    mm.setDefaultPeriodicBoxVectors(*(np.eye(3) * 1.2))
    for mass in atoms.get_masses():
        mm.addParticle(mass)
    if what != "nothing":
        force = openmm.NonbondedForce() if what == "NonbondedForce" else openmm.CustomNonbondedForce("0")
        force.setNonbondedMethod(force.CutoffPeriodic)
        force.setCutoffDistance(0.5)
        for _ in atoms:
            force.addParticle(*([0, 0.1, 0] if what == "NonbondedForce" else [[]]))
        mm.addForce(force)
    potential = MLPotential("mfmd", modelPath=str(model_file))
    system = potential.createMixedSystem(topology, mm, list(range(9)), head="low", precision="double", threads=1)
    wanted = backends.engine(model_file, "low")(ethanol() if what != "nothing" else changed_box(atoms))[0]
    assert backends.energy_and_forces(backends.context_of_system(system, atoms))[0] == pytest.approx(wanted, rel=1e-8)
    if what == "NonbondedForce":
        with pytest.warns(mfmd.Note, match="does not show the System"):
            potential.createMixedSystem(topology, mm, list(range(9)), interpolate=True, head="low", threads=1)
        told = potential.createMixedSystem(
            topology, mm, list(range(9)), interpolate=True, head="low", precision="double", threads=1, periodic=True
        )
        c = backends.context_of_system(told, atoms)
        c.setParameter("lambda_interpolate", 1.0)
        assert backends.energy_and_forces(c)[0] == pytest.approx(wanted, rel=1e-8)


def test_openmm_ml_of_an_ion(charged_file):
    """A part of a System: its formal charges count, or what is said; without either an odd number of electrons is refused."""
    pytest.importorskip("openmmml")
    import openmm
    from openmmml import MLPotential

    atoms = ethanol() + ethanol()
    atoms.positions[9:] += 50.0
    atoms.info = {}
    potential, mm = MLPotential("mfmd", modelPath=str(charged_file)), openmm.System()
    for _ in atoms:
        mm.addParticle(1.0)
    options = {"head": "low", "precision": "double", "threads": 1}
    for part, formal, said, state in (
        (range(9), {}, {"charge": 1}, (1, 2)), (range(9), {2: -1}, {}, (-1, 2)), (range(9), {12: 1}, {}, (0, 1)),
        (range(9, 18), {}, {"charge": 0, "multiplicity": 3}, (0, 3)), (range(9, 17), {}, {"charge": 1}, (1, 1)),
    ):  # fmt: skip
        topology = backends.topology(atoms)
        for atom in topology.atoms():
            atom.formalCharge = formal.get(atom.index)
        system = potential.createMixedSystem(topology, mm, list(part), **options, **said)
        wanted = changed_info(atoms[list(part)], dict(zip(("charge", "multiplicity"), state, strict=True)))
        energy = backends.energy_and_forces(backends.context_of_system(system, atoms))[0]
        assert energy == pytest.approx(backends.engine(charged_file, "low", radial="table")(wanted)[0], abs=1e-8)
    with pytest.raises(InputError, match="the 8 atoms of the model's part have an odd number of electrons"):
        potential.createMixedSystem(backends.topology(atoms), mm, list(range(9, 17)), **options)


def changed_info(atoms, info):
    atoms = atoms.copy()
    atoms.info = info
    return atoms


def changed_box(atoms):
    """The same positions without a box."""
    without = atoms.copy()
    without.pbc = False
    return without


def test_openmm_ml_stays_light():
    """Importing openmmml loads every entry point; ours must bring neither torch nor the engine."""
    pytest.importorskip("openmmml")
    run = python("import sys, openmmml; assert not {'torch', 'mfmd.engine', 'mfmd.hosts.openmm'} & set(sys.modules), 'heavy'")
    assert run.returncode == 0, run.stderr
    run = python("from openmmml import MLPotential; import openmm.app; MLPotential('mfmd').createSystem(openmm.app.Topology())")
    assert "needs modelPath" in run.stderr
    run = python(
        "from openmmml import MLPotential; import openmm.app; MLPotential('mfmd', modelPath='m').createSystem(openmm.app.Topology(), haed='gfn2')"
    )
    assert "no argument 'haed'" in run.stderr


def test_build_host(tmp_path, model_file, monkeypatch, capsys):
    """What `mfmd build-host openmm` compiles loads; without it, or without a compiler, one sentence."""
    pytest.importorskip("openmm")
    import shutil

    from mfmd import cli, engine
    from mfmd.hosts import build

    folder = tmp_path / "mfmd"
    folder.mkdir()
    shutil.copy(engine.LIBRARY_DIR / "libmfmd.so", folder)
    (folder / "libmfmd_openmm-1.0.so").write_text("for another version")
    library = build.compile_host("openmm", engine.LIBRARY_DIR / "csrc", folder)
    assert sorted(folder.glob("libmfmd_openmm*")) == [folder / "libmfmd_openmm-1.0.so", library]
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


@pytest.mark.parametrize("host", ["native", "python"])
def test_replica_exchange_between_levels(host, model_file):
    """The energies that openmm's ReplicaExchangeSampler exchanges by are E(λ) of the replicas where they are."""
    from openmm import LangevinMiddleIntegrator, Platform, app, unit

    if not hasattr(app, "ReplicaExchangeSampler"):
        pytest.skip("openmm has it from 8.6 on")
    atoms, windows = ethanol(), (0.0, 0.3, 1.0)
    system = mfmd.openmm.create_system(model_file, backends.topology(atoms), heads=("low", "high"), host=host, precision="double")
    integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.1 * unit.femtosecond)
    simulation = app.Simulation(backends.topology(atoms), system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(atoms.positions * unit.angstrom)
    sampler = app.ReplicaExchangeSampler([{"mfmd_lambda": value} for value in windows], simulation, 3)
    sampler.simulate(2)
    low, high = (backends.engine(model_file, head, radial="table") for head in ("low", "high"))
    for state, energies in zip(sampler.replicaConformation, sampler.replicaStateEnergy, strict=True):
        atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        first, second = low(atoms)[0], high(atoms)[0]
        found = [e.value_in_unit(unit.kilojoules_per_mole) / units.KJ_PER_MOL for e in energies]
        assert found == pytest.approx([(1 - value) * first + value * second for value in windows], rel=1e-12)
