"""The engine against the torch model, and what any potential must obey."""

import sys

import backends
import numpy as np
import pytest
from conftest import LEVELS, dimer, ethanol, need, random_cell, random_model, write

from mfmd import _engine
from mfmd.engine import Engine, InputError

pytest.importorskip("torch")


def supercell_of(atoms, cutoff):
    """Repeated until every height is at least two cutoffs, and how many copies that takes."""
    heights = atoms.get_volume() / np.array([np.linalg.norm(np.cross(atoms.cell[k - 2], atoms.cell[k - 1])) for k in range(3)])
    times = np.ceil(2.0 * cutoff / heights).astype(int)
    return atoms.repeat(times), int(np.prod(times))


@pytest.fixture(params=[f"{radial}-{simd}" for simd in _engine.instruction_sets() for radial in ("exact", "table")] + ["table-cuda"])
def options(request, monkeypatch):
    """Every path through the kernels: radial functions exact or from tables, on every instruction set of this machine and every device."""
    radial, _, place = request.param.partition("-")
    if place == "cuda":
        return {"radial": radial, "device": need("cuda")}
    monkeypatch.setenv("MFMD_SIMD", place)
    return {"radial": radial}


def check(got, wanted, atoms):
    """Issue A's bar: energy 1e-10 relative after E0, forces 1e-9 eV/Å, virial 1e-9 eV."""
    assert got[0] == pytest.approx(wanted[0], rel=1e-13, abs=1e-10 * len(atoms))
    np.testing.assert_allclose(got[1], wanted[1], rtol=0, atol=1e-9)
    if len(got) > 2 and len(wanted) > 2:
        np.testing.assert_allclose(got[2], wanted[2], rtol=0, atol=1e-9 * max(1, len(atoms) / 10))


@pytest.mark.parametrize("head", LEVELS)
def test_equals_torch_model_on_every_test_frame(model, model_file, test_frames, head):
    wanted, got = backends.reference(model, head), backends.engine(model_file, head)
    frames = test_frames if head == "high" else test_frames[::20]
    for atoms in frames:
        check(got(atoms), wanted(atoms)[: 3 if atoms.pbc.all() else 2], atoms)


def test_every_path_equals_the_torch_model(model, model_file, options):
    """Exact radial functions to rounding, tables to 1e-6 eV/atom and 1e-5 eV/Å (forces here are ten times a molecule's)."""
    wanted, got = backends.reference(model, "high"), backends.engine(model_file, "high", **options)
    for atoms in (ethanol(), random_cell(5, atoms=25), random_cell(6, small=True)):
        if options["radial"] == "exact":
            check(got(atoms), wanted(atoms)[: 3 if atoms.pbc.all() else 2], atoms)
        else:
            (e, f, _), (e2, f2, _) = got(atoms), wanted(atoms)
            assert abs(e - e2) < 1e-6 * len(atoms)
            np.testing.assert_allclose(f, f2, rtol=0, atol=1e-5)


def test_tables_on_every_test_frame_on_a_trained_model(trained, test_frames, device):
    """Tables against exact radial functions: 1e-6 eV/atom, 1e-5 eV/Å; in single precision 1e-5 of the largest force where that is above 1 eV/Å, since
    rounding is relative and the model has not seen all of these molecules."""
    exact = backends.engine(trained[0], "cctz")
    tables = {precision: backends.engine(trained[0], "cctz", precision, "table", device=device) for precision in ("double", "single")}
    for atoms in (a for a in test_frames if set(a.numbers) <= {1, 6, 8} and not a.pbc.any()):
        e, f, _ = exact(atoms)
        for precision, table in tables.items():
            e2, f2, _ = table(atoms)
            assert abs(e - e2) < 1e-6 * len(atoms)
            np.testing.assert_allclose(f, f2, rtol=0, atol=1e-5 * (max(1.0, np.abs(f).max()) if precision == "single" else 1.0))


def test_an_instruction_set_that_no_machine_has(model_file, monkeypatch):
    monkeypatch.setenv("MFMD_SIMD", "avx3")
    with pytest.raises(
        InputError, match=f"avx3, which this machine does not have; unset it, or name one of {', '.join(_engine.instruction_sets())}$"
    ):
        Engine(model_file).compute([[0, 0, 0]], [1], terms=[("low", 1.0)])


@pytest.mark.parametrize("radial_functions, cutoff", [(32, 10.0), (64, 10.0), (128, 5.0), (256, 10.0)])
def test_tables_have_as_many_knots_as_they_need(tmp_path, radial_functions, cutoff):
    path = write(random_model(0, 16, 1, cutoff, 2, radial_functions), tmp_path / "m.pt")
    exact, table = (backends.engine(path, "high", radial=radial)(ethanol()) for radial in ("exact", "table"))
    np.testing.assert_allclose(table[1], exact[1], rtol=0, atol=1e-6 * np.abs(exact[1]).max())


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_size_and_rank(tmp_path, channels, layers, rank):
    model = random_model(1, channels, layers, 4.5, rank, 12)
    path = write(model, tmp_path / "m.pt")
    wanted, got = backends.reference(model, "high"), backends.engine(path, "high")
    for atoms in (ethanol(), random_cell(5, atoms=12)):
        check(got(atoms), wanted(atoms)[: 3 if atoms.pbc.all() else 2], atoms)


@pytest.mark.parametrize("seed", range(20))
def test_random_cells_against_explicit_supercell(model, model_file, seed):
    """Triclinic cells, half of them smaller than twice the cutoff; the oracle is the torch model on a supercell."""
    atoms = random_cell(seed, small=seed % 2 == 0, atoms=4 + seed % 5)
    big, copies = supercell_of(atoms, model.backbone.radial.cutoff)
    energy, forces, virial = backends.engine(model_file, "high")(atoms)
    e, f, v = backends.reference(model, "high")(big)
    check((energy, forces, virial), (e / copies, f[: len(atoms)], v / copies), atoms)


@pytest.mark.parametrize("pbc", [(True, False, False), (False, True, True), (True, True, False)])
def test_mixed_periodicity(model, model_file, pbc):
    atoms = random_cell(3, pbc=pbc, small=True, atoms=5)
    check(backends.engine(model_file, "low")(atoms)[:2], backends.reference(model, "low")(atoms)[:2], atoms)


def test_single_precision_on_a_trained_model(trained, test_frames, device):
    """1e-5 eV/atom and 1e-4 eV/Å between single and double."""
    single, double = (backends.engine(trained[0], "cctz", p, "table", device=device) for p in ("single", "double"))
    for atoms in (a for a in test_frames if a.info["molecule"] == "ethanol"):
        (e1, f1, _), (e2, f2, _) = single(atoms), double(atoms)
        assert abs(e1 - e2) < 1e-5 * len(atoms)
        np.testing.assert_allclose(f1, f2, rtol=0, atol=1e-4)


def test_forces_and_stress_by_finite_differences(model_file, options):
    """Central differences of step h err by h² E'''/6 + eps E/h; at h = 1e-4 Å both are below 1e-8 eV/Å here."""
    atoms = random_cell(7, small=True, atoms=5)
    compute = backends.engine(model_file, "high", **options)
    _, forces, virial = compute(atoms)
    h = 1e-4
    numeric = [[-backends.slope_along(compute, atoms, i, a, h) for a in range(3)] for i in range(len(atoms))]
    np.testing.assert_allclose(forces, numeric, rtol=0, atol=1e-6 * np.abs(forces).max())
    strained = [[backends.slope_of_strain(compute, atoms, a, b, h) for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(-virial, strained, rtol=0, atol=1e-6 * np.abs(virial).max())


def test_invariances(model_file, options):
    compute = backends.engine(model_file, "high", **options)
    rng = np.random.default_rng(0)
    for atoms in (ethanol(), random_cell(11, small=True)):
        energy, forces, _ = compute(atoms)
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))  # with or without a reflection: O(3)
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ rotation)
        turned.positions = atoms.positions @ rotation
        e, f, _ = compute(turned)
        assert e == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(f, forces @ rotation, atol=1e-9)
        shifted = atoms.copy()
        shifted.positions += rng.normal(size=3) * 3
        if atoms.pbc.all():  # atoms by lattice vectors of their own
            shifted.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
        e, f, _ = compute(shifted)
        assert e == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(f, forces, atol=1e-9)
        order = rng.permutation(len(atoms))
        e, f, _ = compute(atoms[order])
        assert e == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(f, forces[order], atol=1e-9)
        np.testing.assert_allclose(forces.sum(0), 0, atol=1e-9)


def test_smooth_at_the_cutoff(model, model_file, options):
    compute, rc = backends.engine(model_file, "high", **options), model.backbone.radial.cutoff
    e1, f1, _ = compute(dimer(rc - 1e-6))
    e2, f2, _ = compute(dimer(rc + 1e-6))
    assert abs(e1 - e2) < 1e-10
    np.testing.assert_allclose(f1, f2, rtol=0, atol=1e-6)


def test_empty_structure(model_file, device):
    out = Engine(model_file, device=device).compute(np.zeros((0, 3)), [], terms=[("low", 1.0)])
    assert out["energy"] == 0 and out["forces"].shape == (0, 3)


def test_terms_are_sums_of_heads(model_file, device):
    e, atoms = Engine(model_file, "double", device), ethanol()
    args = (atoms.positions, atoms.numbers)
    single = {level: e.compute(*args, terms=[(level, 1.0)]) for level in LEVELS}
    mixed = e.compute(*args, terms=[("low", 0.3), ("high", 0.7), ("middle", 0.0)], atom_energies=True)
    np.testing.assert_allclose(mixed["term_energies"], [single[k]["energy"] for k in ("low", "high", "middle")], rtol=1e-14)
    assert mixed["energy"] == pytest.approx(0.3 * single["low"]["energy"] + 0.7 * single["high"]["energy"], rel=1e-14)
    np.testing.assert_allclose(mixed["forces"], 0.3 * single["low"]["forces"] + 0.7 * single["high"]["forces"], atol=1e-11)
    assert mixed["atom_energies"].sum() == pytest.approx(mixed["energy"], rel=1e-14)
    difference = e.compute(*args, terms=[("high", 1.0), ("low", -1.0)])
    assert difference["energy"] == pytest.approx(single["high"]["energy"] - single["low"]["energy"], abs=1e-9)


@pytest.mark.parametrize("precision", ["single", "double"])
def test_bits_depend_on_input_alone(model_file, precision, options):
    """Not on threads, not on the age of the neighbour list, not on what was computed before."""
    rng = np.random.default_rng(1)
    atoms = random_cell(2, atoms=40)
    old = Engine(model_file, precision, threads=3, **options)
    for _ in range(6):
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        args = (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
        outs = [
            e.compute(*args, terms=[("high", 1.0)], virial=True)
            for e in (old, Engine(model_file, precision, threads=1, skin=0.2, **options))
        ]
        assert outs[0]["energy"] == outs[1]["energy"]
        assert np.array_equal(outs[0]["forces"], outs[1]["forces"]) and np.array_equal(outs[0]["virial"], outs[1]["virial"])
    assert old._workspace.rebuilds < 6  # some of these steps did reuse a list


def test_an_engine_shared_by_threads_and_a_forked_child(model_file):
    """Threads take turns; a child of fork, which has none of the pool's threads, starts its own."""
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    e = Engine(model_file, "double", threads=2)
    structures = [random_cell(k, atoms=n) for k, n in enumerate((60, 25, 40))]

    def energy(k):
        a = structures[k]
        return e.compute(a.positions, a.numbers, a.cell.array, a.pbc, terms=[("low", 1.0)])["energy"]

    wanted = [energy(k) for k in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(energy, [0, 1, 2] * 10)) == wanted * 10
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if energy(0) == wanted[0] else 3))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_host_with_ghosts_and_a_list_of_its_own(model_file, device):
    """What LAMMPS does: periodic images as ghost atoms, filled between layers by the host; a list kept while atoms move, and then another."""
    atoms = random_cell(4, small=True, atoms=5)
    e = Engine(model_file, "double", device)
    rng = np.random.default_rng(1)
    for version, (skin, steps) in enumerate([(1.5, 6), (0.0, 1), (0.8, 3)]):
        images = backends.Images(atoms, e.model.cutoff + skin)
        for _ in range(steps):
            got = images.evaluate(e, atoms, "high", version)
            wanted = Engine(model_file, "double").compute(
                atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("high", 1.0)], virial=True, atom_energies=True
            )
            assert got["energy"] == pytest.approx(wanted["energy"], abs=1e-10)
            for key in ("forces", "virial", "atom_energies"):
                np.testing.assert_allclose(got[key], wanted[key], atol=1e-10)
            np.testing.assert_allclose(got["atom_virials"].sum(0), wanted["virial"], atol=1e-10)
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)


def test_a_refused_structure_leaves_no_list(model_file, device):
    atoms = random_cell(4, atoms=8)
    e = Engine(model_file, "double", device)

    def energy(cell):
        return e.compute(atoms.positions, atoms.numbers, cell, atoms.pbc, terms=[("high", 1.0)])["energy"]

    before = energy(atoms.cell.array)
    with pytest.raises(InputError, match="flat"):
        energy(atoms.cell.array * [[1.0], [1.0], [1e-5]])
    assert energy(atoms.cell.array) == before


def test_overlapping_atoms_are_named(model_file, device):
    atoms = ethanol()
    atoms.positions[4] = atoms.positions[7] + [0.1, 0, 0]
    with pytest.raises(InputError, match="atoms 4 and 7 overlap"):
        Engine(model_file, device=device).compute(atoms.positions, atoms.numbers, terms=[("low", 1.0)])


def test_a_batch_is_its_structures_one_by_one(model_file, device):
    """Of different sizes and periodicity, one of them empty: bit for bit; a fault in one is named as such."""
    structures = [
        (a.positions, a.numbers, a.cell.array, a.pbc)
        for a in (ethanol(), random_cell(1, small=True), ethanol()[:0], random_cell(2, pbc=(True, False, True), atoms=20), ethanol()[:1])
    ]
    options = {"terms": [("high", 1.0), ("low", 0.5)], "virial": True, "atom_energies": True}
    e = Engine(model_file, "single", device)
    for _ in range(2):
        together = e.compute_batch(structures, **options)
        for s, got in zip(structures, together, strict=True):
            wanted = Engine(model_file, "single", device).compute(*s, **options)
            assert got.keys() == wanted.keys() and all(np.array_equal(got[key], wanted[key]) for key in wanted)
        structures = structures[::-1]
    assert e.compute_batch([], **options) == []
    overlapping = np.zeros((2, 3)), [1, 1], None, (False, False, False)
    with pytest.raises(InputError, match="atoms 0 and 1 overlap"):
        e.compute_batch([structures[0], overlapping], **options)


@pytest.mark.parametrize(
    "state", [1, (1,), [0, 1], "1", {"charge": 1}, [(slice(9), 0, 1)], [([0.5, *range(1, 9)], 0, 1)], [([True] * 9, 0, 1)], [(range(9), 0)]]
)
def test_states_that_are_none(model_file, state):
    atoms = ethanol()
    with pytest.raises(
        InputError, match=r"a state is .*; it must be \(charge, multiplicity\), or a list of \(atoms, charge, multiplicity\)"
    ):
        Engine(model_file).compute_batch([(atoms.positions, atoms.numbers, None, (False,) * 3)], terms=[("low", 1.0)], states=[state])
