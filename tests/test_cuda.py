"""The CUDA engine against the CPU's: every size, every way its list is built, every way it can run out of room."""

import backends
import numpy as np
import pytest
from ase import Atoms
from conftest import all_at_once, dimer, ethanol, need, random_cell, random_model, write

import mfmd
from mfmd.engine import Engine, InputError, load_torch_host

pytest.importorskip("torch")

ATOL = {"single": 1e-4, "double": 1e-10}  # of the forces here, which are ten times a molecule's, and of energies of ten atoms
OPTIONS = {"terms": [("high", 1.0), ("low", 0.5)], "virial": True, "atom_energies": True}


@pytest.fixture(autouse=True)
def _device(request):
    need("cuda")
    OnDevice.place = "cpu" if request.config.getoption("--engine") else "cuda"


@pytest.fixture(params=["single", "double"])
def precision(request):
    return request.param


def engines(path, precision="double", **options):
    return Engine(path, precision, "cuda", **options), Engine(path, precision, "cpu", **options)


def check(cuda, cpu, atoms, atol=None):
    atol = atol or ATOL[cuda.precision]
    got, wanted = (e.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, **OPTIONS) for e in (cuda, cpu))
    for key in wanted:
        np.testing.assert_allclose(got[key], wanted[key], rtol=1e-13, atol=atol * max(1, len(atoms) / 10), err_msg=key)


@pytest.mark.parametrize("channels", [16, 48, 128])
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_size_and_rank(tmp_path, channels, layers, rank, precision):
    pair = engines(write(random_model(1, channels, layers, 4.5, rank, 12), tmp_path / "m.pt"), precision)
    for atoms in (ethanol(), random_cell(5, atoms=7)):
        check(*pair, atoms)


@pytest.mark.parametrize("seed", range(12))
def test_random_cells(model_file, seed, precision):
    pbc = ((True, True, True), (True, False, False), (False, True, True), (False, False, False))[seed % 4]
    check(*engines(model_file, precision), random_cell(seed, pbc=pbc, small=seed % 3 == 0, atoms=4 + seed % 5))


@pytest.mark.parametrize("channels, rank, copies", [(16, 0, 8), (48, 1, 8), (48, 2, 8), (16, 2, 80)])
def test_tf32(tmp_path, channels, rank, copies):
    """Products by tensor cores: as far from double as factors of ten bits are, and no farther; the same bits every time."""
    path = write(random_model(1, channels, 2, 4.5, rank, 12), tmp_path / "m.pt")
    for atoms in (ethanol(), random_cell(5, atoms=8).repeat((2, 2, copies // 4))):  # blocks of few atoms and of many
        atoms.positions += np.random.default_rng(0).normal(scale=0.02, size=atoms.positions.shape)
        double, single, tf32, again = (
            Engine(path, precision, "cuda").compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, **OPTIONS)["forces"]
            for precision in ("double", "single", "tf32", "tf32")
        )
        assert 10 * np.abs(single - double).max() < np.abs(tf32 - double).max() < 5e-3 * np.abs(double).max()
        assert np.array_equal(tf32, again)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
def test_bins(tmp_path, pbc, precision):
    """More atoms than one bin holds; a list that is reused and rebuilt, atoms that leave the cell, blocks of atoms of every size."""
    path = write(random_model(2, 16, 1, 3.0, 2, 8), tmp_path / "m.pt")
    rng = np.random.default_rng(0)
    atoms = random_cell(1, pbc=pbc, atoms=8).repeat((4, 4, 5))
    assert len(atoms) == 640
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    if any(pbc):
        atoms.positions += (rng.integers(-2, 3, (len(atoms), 3)) * pbc) @ atoms.cell.array
    cuda, cpu = engines(path, precision)
    for step in range(3):
        check(cuda, cpu, atoms)
        atoms.positions += rng.normal(scale=0.02 if step == 0 else 0.3, size=atoms.positions.shape)
    assert cuda._workspace.rebuilds == 2


def test_a_chain_far_from_the_origin(tmp_path, precision):
    """Many more slices than bins along one direction without a box."""
    path = write(random_model(2, 16, 1, 3.0, 2, 8), tmp_path / "m.pt")
    rng = np.random.default_rng(0)
    for offset in (0.0, -3e5):
        chain = Atoms("OH" * 300)
        chain.positions = (
            rng.permutation(np.arange(len(chain)))[:, None] * [2.5, 0.0, 0.1] + rng.uniform(-0.3, 0.3, (len(chain), 3)) + offset
        )
        check(*engines(path, precision), chain, 10 * ATOL[precision])


def test_rows_get_the_room_they_need(model_file, precision):
    """A molecule, then hydrogen as dense as nothing is: more neighbours than a row has room for at first; then the molecule again."""
    cuda, cpu = engines(model_file, precision)
    dense = random_cell(3, atoms=1)
    dense.set_cell(np.eye(3) * 1.1)
    dense.positions[:] = 0.0
    dense.pbc = True
    for atoms in (ethanol(), dense, ethanol(), dense.repeat((2, 1, 1))):
        check(cuda, cpu, atoms)


@pytest.mark.parametrize("channels, precision", [(64, "double"), (96, "single")])
def test_many_rows_a_thread_and_few(tmp_path, channels, precision):
    """Alone, a molecule's blocks have few atoms, in a batch as many as fit: the same bits, and the CPU's numbers."""
    rng, structures = np.random.default_rng(0), [ethanol() for _ in range(8)]
    for atoms in structures:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    given = [(a.positions, a.numbers, a.cell.array, a.pbc) for a in structures]
    cuda, cpu = engines(write(random_model(1, channels, 1, 4.5, 2, 12), tmp_path / "m.pt"), precision)
    for one, got, atoms in zip(given, cuda.compute_batch(given, **OPTIONS), structures, strict=True):
        alone = cuda.compute(*one, **OPTIONS)
        assert all(np.array_equal(got[key], alone[key]) for key in alone)
        check(cuda, cpu, atoms)


@pytest.mark.parametrize("repeats", [(1, 1, 1), (4, 4, 5)])
def test_the_same_bits_every_time(tmp_path, repeats):
    """With one list and with lists made anew, where atoms of a bin come in whichever order."""
    path = write(random_model(2, 16, 1, 3.0, 2, 8), tmp_path / "m.pt")
    atoms = random_cell(1, atoms=8).repeat(repeats)
    first, *others = (
        cuda.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, **OPTIONS)
        for cuda in (Engine(path, "single", "cuda") for _ in range(4))
        for _ in range(3)
    )
    for other in others:
        assert all(np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("pbc", [True, False])
def test_more_atoms_than_one_block_prepares(tmp_path, pbc):
    """A list and sums of several blocks, used again and made anew."""
    cuda, cpu = engines(write(random_model(2, 16, 0, 3.0, 1, 8), tmp_path / "m.pt"))
    atoms = random_cell(1, pbc=pbc, atoms=8).repeat((6, 7, 7))
    assert len(atoms) == 2352
    rng = np.random.default_rng(0)
    for scale in (0.05, 0.02, 0.3):
        atoms.positions += rng.normal(scale=scale, size=atoms.positions.shape)
        check(cuda, cpu, atoms)
    assert cuda._workspace.rebuilds == 2


def test_sums_of_pieces(tmp_path):
    """Alone, a system's sums are several blocks' work, in a batch one block's: the same bits."""
    cuda, _ = engines(write(random_model(2, 16, 0, 3.0, 1, 8), tmp_path / "m.pt"), "single")
    atoms = random_cell(1, pbc=False, atoms=8).repeat((5, 5, 6))
    assert len(atoms) == 1200
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    given = [(a.positions, a.numbers, a.cell.array, a.pbc) for a in (ethanol(), atoms)]
    alone, (_, batch) = cuda.compute(*given[1], **OPTIONS), cuda.compute_batch(given, **OPTIONS)
    assert all(np.array_equal(alone[key], batch[key]) for key in alone)


def test_taking_turns(model_file):
    """More kinds of step than graphs are kept of, in turn and by chance: each gives what it gives by itself."""
    rng = np.random.default_rng(0)
    molecules = [ethanol()[: 9 - k] for k in range(4)] + [random_cell(k, atoms=3 + k) for k in range(3)]
    wanted = [Engine(model_file, "single", "cuda").compute(a.positions, a.numbers, a.cell.array, a.pbc, **OPTIONS) for a in molecules]
    cuda = Engine(model_file, "single", "cuda")
    turns = [k for k in range(len(molecules)) for _ in range(3)] + [0, 1] * 3 + list(rng.permutation(3 * list(range(len(molecules)))))
    for k in turns:
        a = molecules[k]
        options = OPTIONS if rng.random() < 0.7 else {"terms": OPTIONS["terms"], "forces": False}
        got = cuda.compute(a.positions, a.numbers, a.cell.array, a.pbc, **options)
        assert all(np.array_equal(got[key], wanted[k][key]) for key in got)


def test_a_hundred_equal_runs(tmp_path, precision):
    """Ten lists of ten runs each, with more blocks than a card runs at once."""
    path = write(random_model(2, 32, 2, 3.0, 2, 8), tmp_path / "m.pt")
    atoms = random_cell(1, atoms=8).repeat((6, 6, 8) if OnDevice.place == "cuda" else 2)
    first, *others = (
        steps.run() for steps in (OnDevice(Engine(path, precision, "cuda"), [atoms], [("high", 1.0)]) for _ in range(10)) for _ in range(10)
    )
    assert len(others) == 99
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_change_without_a_new_graph(model_file):
    cuda, cpu = engines(model_file)
    atoms = ethanol()
    for weight in (0.0, 0.25, 1.0):
        terms = [("low", 1.0 - weight), ("high", weight)]
        got, wanted = (e.compute(atoms.positions, atoms.numbers, terms=terms) for e in (cuda, cpu))
        np.testing.assert_allclose(got["forces"], wanted["forces"], atol=1e-10)


def test_faults_have_the_same_sentence(model_file):
    bad = dimer(1.0), dimer(0.3), dimer(1.0), random_cell(4, atoms=5), random_cell(4, atoms=5)
    bad[0].positions[1, 2] = np.nan
    bad[2].numbers[1] = 92
    bad[3].cell[2] = bad[3].cell[1]
    bad[4].positions[2] += 1e9 * bad[4].cell[0]
    for atoms in bad:
        sentences = []
        for e in engines(model_file):
            with pytest.raises(InputError) as error:
                e.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("low", 1.0)])
            sentences.append(str(error.value))
        assert sentences[0] == sentences[1]


def test_options_it_has_not(model_file):
    with pytest.raises(InputError, match="no CUDA device number 99"):
        Engine(model_file, device="cuda:99")
    with pytest.raises(InputError, match="from tables"):
        Engine(model_file, device="cuda", radial="exact")
    with pytest.raises(InputError, match="tf32 is for the tensor cores"):
        Engine(model_file, "tf32")


class OnDevice:
    """Structures of one periodicity on the device; `run` enqueues them and returns energies, forces and virials. With torch on a GPU, in host memory under the emulator."""

    place = None  # torch's device, set by the fixture

    def __init__(self, engine, structures, terms, states=None):
        import torch

        self.engine, self.structures, self.terms, self.states = engine, structures, terms, states
        if self.place == "cuda" and not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA, and the engine's structures are to lie on the device")
        systems, atoms = len(structures), sum(map(len, structures))
        self.positions, self.forces = (torch.zeros(atoms, 3, dtype=torch.float64, device=self.place) for _ in range(2))
        self.cells, self.virials = (torch.zeros(systems, 3, 3, dtype=torch.float64, device=self.place) for _ in range(2))
        self.energies = torch.zeros(1 + len(terms), systems, dtype=torch.float64, device=self.place)

    def run(self):
        import torch

        self.positions.copy_(torch.as_tensor(np.concatenate([a.positions for a in self.structures])))
        self.cells.copy_(torch.as_tensor(np.array([a.cell.array for a in self.structures])))
        for result in (self.energies, self.forces, self.virials):
            result.fill_(7.0)
        self.engine.enqueue(
            [len(a) for a in self.structures],
            np.concatenate([a.numbers for a in self.structures]),
            self.positions.data_ptr(),
            self.cells.data_ptr(),
            self.structures[0].pbc,
            terms=self.terms,
            energies=self.energies.data_ptr(),
            forces=self.forces.data_ptr(),
            virials=self.virials.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream if self.place == "cuda" else 0,
            states=self.states,
        )
        return [x.cpu().numpy() for x in (self.energies, self.forces, self.virials)]

    def check(self, cpu):
        energies, forces, virials = self.run()
        rtol, atol = (1e-13, 1e-10) if cpu.precision == "double" else (1e-6, 1e-3)
        given = [(a.positions, a.numbers, a.cell.array, a.pbc) for a in self.structures]
        wanted = cpu.compute_batch(given, states=self.states, terms=self.terms, virial=True)
        np.testing.assert_allclose(energies[0], [w["energy"] for w in wanted], rtol=rtol)
        np.testing.assert_allclose(energies[1:].T, [w["term_energies"] for w in wanted], rtol=rtol)
        np.testing.assert_allclose(forces, np.concatenate([w["forces"] for w in wanted]), atol=atol)
        np.testing.assert_allclose(virials, [w["virial"] for w in wanted], atol=atol)


@pytest.mark.parametrize("small", [True, False])
def test_structures_on_the_device(model_file, small, precision):
    """Two of them, moving by more and less than the list's skin, with a cell that changes and weights that do."""
    cuda, cpu = engines(model_file, precision)
    rng = np.random.default_rng(0)
    structures = [random_cell(1, small=small, atoms=6), random_cell(2, small=small, atoms=9)]
    steps = OnDevice(cuda, structures, [("high", 1.0), ("low", 0.5)])
    for step in range(6):
        for atoms in structures:
            atoms.positions += rng.normal(scale=0.02 if step % 2 else 0.2, size=atoms.positions.shape)
        if step == 3:
            structures[0].set_cell(structures[0].cell.array * 1.05)
        if step == 4:
            steps.terms = [("high", 0.25), ("low", 0.75)]
        if step == 5:
            steps.terms = [("middle", 0.25), ("low", 0.75)]
        steps.check(cpu)


def test_states_on_the_device(charged_file):
    """Structures in states of their own, which change from step to step, a state that the heads have not seen among them."""
    cuda, cpu = (Engine(charged_file, "double", device, allow_unseen_state=True) for device in ("cuda", "cpu"))
    molecules = OnDevice(cuda, [ethanol(), ethanol(), ethanol()], [("high", 1.0), ("low", 0.5)])
    for states in (
        None,
        [(1, 2), None, (-1, 2)],
        [(0, 3), (0, 1), (1, 2)],
        [(range(8), 1, 1), ([8], 0, 2)],
        [(-2, 3), (0, 1), (4, 3)],
        None,
    ):
        molecules.states = [states, (1, None), None] if states and isinstance(states[0][0], range) else states
        molecules.check(cpu)
    with pytest.raises(InputError, match="states are of 1 structures, and there are 3"):
        molecules.states = [(0, 1)]
        molecules.run()


@pytest.mark.parametrize("precision", ["double", "single"])
def test_what_published_models_have(tmp_path, precision):
    """From the host and on the device, whose energies have the constant of a level too."""
    cuda, cpu = engines(write(all_at_once(), tmp_path / "m.pt"), precision)
    structures = [random_cell(1, atoms=6), random_cell(2, atoms=9)]
    for atoms in (ethanol(), random_cell(3, small=True), *structures):
        got, wanted = (
            e.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("high", 1.0)], virial=True) for e in (cuda, cpu)
        )
        for key in ("energy", "forces", "virial"):
            largest = np.abs(wanted["forces"]).max() if key == "forces" else len(atoms)
            np.testing.assert_allclose(
                got[key], wanted[key], rtol=1e-13, atol=(1e-10 if precision == "double" else 2e-5) * largest, err_msg=key
            )
    if precision == "double":
        OnDevice(cuda, structures, [("high", 0.5)]).check(cpu)


def test_a_step_that_fails_on_the_device_gives_no_numbers(model_file, precision):
    """Atoms that overlap, then neighbours that have no room: not numbers, then a sentence or more room; and right again afterwards."""
    cuda, cpu = engines(model_file, precision)
    atoms = random_cell(1, atoms=8)
    steps = OnDevice(cuda, [atoms], [("high", 1.0)])
    steps.check(cpu)
    good = atoms.positions.copy()
    atoms.positions[5] = atoms.positions[2] + [0.2, 0, 0]
    assert all(np.isnan(x).all() for x in steps.run())
    with pytest.raises(InputError, match="atoms 2 and 5 overlap"):
        steps.run()
    atoms.positions[:] = good
    steps.check(cpu)
    cell = atoms.cell.array.copy()
    atoms.set_cell(cell * 0.4, scale_atoms=True)
    assert all(np.isnan(x).all() for x in steps.run())
    for scale in (0.4, 1.0):
        atoms.set_cell(cell * scale, scale_atoms=True)
        steps.check(cpu)


def test_host_and_device_take_turns(model_file, precision):
    """One engine, structures of either: what one does or is refused leaves nothing for the other."""
    cuda, cpu = engines(model_file, precision)
    atoms = random_cell(1, atoms=8)
    steps = OnDevice(cuda, [atoms], [("high", 1.0)])
    steps.check(cpu)
    bad = atoms.copy()
    bad.positions[5] = bad.positions[2] + [0.2, 0, 0]
    with pytest.raises(InputError, match="atoms 2 and 5 overlap"):
        check(cuda, cpu, bad)
    steps.check(cpu)
    check(cuda, cpu, ethanol())
    steps.check(cpu)
    atoms.positions[:] = bad.positions
    assert all(np.isnan(x).all() for x in steps.run())
    with pytest.raises(InputError, match="atoms 2 and 5 overlap"):
        OnDevice(cuda, [random_cell(1, atoms=8)], [("high", 1.0)]).run()  # of the step before
    OnDevice(cuda, [random_cell(1, atoms=8)], [("high", 1.0)]).check(cpu)


def test_within_a_graph_of_the_caller(model_file, precision):
    import torch

    if OnDevice.place == "cpu":
        pytest.skip("CUDA graphs of torch need a GPU")
    cuda, cpu = engines(model_file, precision)
    steps = OnDevice(cuda, [random_cell(1, atoms=8)], [("high", 1.0)])
    steps.check(cpu)
    graph, (atoms,) = torch.cuda.CUDAGraph(), steps.structures
    cells, numbers = steps.cells.data_ptr(), atoms.numbers
    with torch.cuda.graph(graph):
        cuda.enqueue(
            [len(atoms)], numbers, steps.positions.data_ptr(), cells, atoms.pbc, terms=steps.terms, energies=steps.energies.data_ptr(),
            forces=steps.forces.data_ptr(), virials=steps.virials.data_ptr(), stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
    for shift in (0.0, 0.1, 0.5):
        atoms.positions[0] += shift
        steps.positions.copy_(torch.as_tensor(atoms.positions))
        graph.replay()
        wanted = cpu.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=steps.terms)
        np.testing.assert_allclose(steps.forces.cpu().numpy(), wanted["forces"], atol=10 * ATOL[precision])
    with pytest.raises(InputError, match="belongs to the CUDA graph"):
        steps.run()


def test_structures_on_the_device_are_checked(model_file):
    cuda, _ = engines(model_file)
    box = random_cell(1, atoms=4)
    steps = OnDevice(cuda, [box], [("low", 1.0)])
    positions, energies = steps.positions.data_ptr(), steps.energies.data_ptr()
    for atoms, cells, place, message in (
        ([4], 0, energies, "there are no cells"),
        ([4], steps.cells.data_ptr(), 0, "a place for their energies"),
        ([5, -1], steps.cells.data_ptr(), energies, "fewer than no atoms"),
        ([3], steps.cells.data_ptr(), energies, "one atomic number for each"),
    ):
        with pytest.raises(InputError, match=message):
            cuda.enqueue(atoms, box.numbers, positions, cells, box.pbc, terms=[("low", 1.0)], energies=place)
    with pytest.raises(InputError, match="trained on"):
        OnDevice(engines(model_file)[0], [dimer(1.0, "UH")], [("low", 1.0)]).run()
    with pytest.raises(InputError, match="need a workspace of that device"):
        OnDevice(Engine(model_file), [dimer(1.0)], [("low", 1.0)]).run()


def test_the_archive_on_the_device(model_file):
    """TorchScript's tensors on the device: the CPU engine's numbers, recorded in a graph of the caller too."""
    import torch

    if OnDevice.place == "cpu" or not torch.cuda.is_available():
        pytest.skip("TorchScript's tensors on the device need a GPU and a torch with CUDA")
    load_torch_host()
    module, atoms = torch.jit.load(str(model_file)), random_cell(1, atoms=8)
    wanted = Engine(model_file).compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, terms=[("high", 1.0)], virial=True)
    positions, cell = (torch.tensor(x, device="cuda") for x in (atoms.positions, atoms.cell.array))
    numbers, pbc = torch.tensor(atoms.numbers), torch.tensor(atoms.pbc)
    results = module(positions, numbers, cell, pbc)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = module(positions, numbers, cell, pbc)
    graph.replay()
    for energy, forces, virial in (results, recorded):
        assert float(energy) == pytest.approx(wanted["energy"], rel=1e-6)
        np.testing.assert_allclose(forces.cpu().numpy(), wanted["forces"], atol=1e-3)
        np.testing.assert_allclose(virial.cpu().numpy(), wanted["virial"], atol=1e-3)


def test_images_of_a_host(any_model, precision):
    """Its list, one for a while and then another, in which atoms come closer together than there is room for; between them structures without. It is asked
    for the rows of its ghosts as often as on the CPU, the same bits each time."""
    cuda, cpu = engines(any_model, precision)
    atoms, close = random_cell(4, small=True, atoms=5), random_cell(4, small=True, atoms=5)
    close.set_cell(0.8 * close.cell.array, scale_atoms=True)
    atol = 1e-10 if precision == "double" else 1e-3
    rng = np.random.default_rng(1)
    for version, (one, skin) in enumerate([(atoms, 1.0), (close, 1.0), (atoms, 0.0), (close, 0.3)]):
        images = backends.Images(one, cpu.model.cutoff + skin)
        for _ in range(3 if skin else 1):
            got, again, wanted = (images.evaluate(e, one, "high", version) for e in (cuda, cuda, cpu))
            for key in ("energy", "forces", "virial", "atom_energies", "atom_virials"):
                np.testing.assert_array_equal(got[key], again[key])
                np.testing.assert_allclose(got[key], wanted[key], rtol=1e-13 if precision == "double" else 1e-5, atol=atol)
            assert got["filled"] == again["filled"] == wanted["filled"] > 2
            one.positions += rng.normal(scale=0.03, size=one.positions.shape)
        got, wanted = (e.compute(one.positions, one.numbers, one.cell.array, one.pbc, terms=[("high", 1.0)]) for e in (cuda, cpu))
        np.testing.assert_allclose(got["forces"], wanted["forces"], atol=atol)


def test_a_part_without_atoms(any_model):
    """What a rank of LAMMPS may have: ghosts alone, or nothing; it takes part in every exchange all the same."""
    cuda, cpu = engines(any_model)
    for ghosts in (0, 3):
        positions, numbers, owner = np.arange(9.0).reshape(3, 3)[:ghosts], np.ones(ghosts, int), np.zeros(ghosts, int)
        got, wanted = (e._workspace.evaluate_with_ghosts(positions, numbers, owner, [0], [], 0, ghosts) for e in (cuda, cpu))
        assert got["energy"] == wanted["energy"] == 0.0 and got["forces"].shape == (0, 3) and got["filled"] == wanted["filled"] > 2


def test_images_of_a_host_are_checked(model_file):
    """In the words that the CPU has for them; and afterwards all is as before."""
    cuda, cpu = engines(model_file)
    atoms = random_cell(4, small=True, atoms=5)
    images = backends.Images(atoms, 5.0)
    wanted = images.evaluate(cpu, atoms, "high")
    k, *shift = next(image for image in (images.images[j] for j in images.neighbors[: images.first[1]]) if image[0] != 0)
    for where in (np.nan, atoms.positions[k] + shift @ atoms.cell.array + 0.1):
        bad = atoms.copy()
        bad.positions[0] = where
        said = []
        for e in (cuda, cpu):
            with pytest.raises(InputError) as caught:
                images.evaluate(e, bad, "high")
            said.append(str(caught.value))
        assert said[0] == said[1] and ("not finite" in said[0] or "overlap" in said[0])
        np.testing.assert_allclose(images.evaluate(cuda, atoms, "high")["forces"], wanted["forces"], atol=1e-10)


def test_a_device_has_no_memory_left(model_file, monkeypatch):
    """The emulated one: a sentence, and what fits is evaluated as before."""
    if OnDevice.place == "cuda":
        pytest.skip("a device that others use is not filled for a test")
    small, large = ethanol(), random_cell(1, atoms=6).repeat((4, 4, 4))
    engine = Engine(model_file, "double", "cuda")

    def forces(atoms):
        return engine.compute(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, **OPTIONS)["forces"]

    before = forces(small)
    monkeypatch.setenv("MFMD_EMULATED_MEMORY", "0")
    for _ in range(2):
        with pytest.raises(mfmd.Error, match="the CUDA device has a problem with memory for a structure of this size: out of memory"):
            forces(large)
    monkeypatch.delenv("MFMD_EMULATED_MEMORY")
    np.testing.assert_array_equal(forces(small), before)
    assert np.isfinite(forces(large)).all()
