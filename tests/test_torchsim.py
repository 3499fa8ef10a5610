"""TorchSim: its own check of a model, the engine's numbers, and a run of a batch."""

import warnings

import ase.units
import numpy as np
import pytest
from conftest import LEVELS, ethanol, need, random_cell, random_model, stretched, write

torch = pytest.importorskip("torch")
ts = pytest.importorskip("torch_sim")


def device_of(device):
    if need(device) == "cuda" and not torch.cuda.is_available():
        pytest.skip("tensors on a CUDA device need a GPU")
    return torch.device(device)


@pytest.mark.parametrize("precision", ["single", "double"])
def test_torchsims_own_check(tmp_path, precision, device):
    from torch_sim.models.interface import validate_model_outputs

    import mfmd

    path = write(random_model(), tmp_path / "m.pt", elements=range(1, 90))
    place = device_of(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mfmd.Note)  # newer versions check a molecule too
        validate_model_outputs(mfmd.torchsim.MfmdModel(path, device=place, precision=precision), place, torch.float64)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_batch_has_the_engines_numbers(model_file, periodic, device):
    import mfmd
    from mfmd.engine import Engine

    place = device_of(device)
    structures = [random_cell(1, atoms=6), random_cell(2, atoms=9)] if periodic else [ethanol(), ethanol()[:4]]
    for a in structures:
        if not periodic:
            a.center(vacuum=5.0)
    state = ts.io.atoms_to_state(structures, place, torch.float64)
    for head in LEVELS:
        model = mfmd.torchsim.MfmdModel(model_file, head, device=place, precision="double", compute_stress=periodic)
        out = model(state)
        wanted = [
            Engine(model_file, "double").compute(a.positions, a.numbers, a.cell.array, a.pbc, terms=[(head, 1.0)], virial=True)
            for a in structures
        ]
        np.testing.assert_allclose(out["energy"].cpu(), [w["energy"] for w in wanted], rtol=1e-13)
        np.testing.assert_allclose(out["forces"].cpu(), np.concatenate([w["forces"] for w in wanted]), atol=1e-10)
        if periodic:
            stress = [-w["virial"] / a.get_volume() for w, a in zip(wanted, structures, strict=True)]
            np.testing.assert_allclose(out["stress"].cpu(), stress, atol=1e-10)
        else:
            model.compute_stress = True
            with pytest.warns(mfmd.Note, match="compute_stress=False"):
                again = model(state)
            assert torch.isnan(again["stress"]).all() and torch.equal(again["energy"], out["energy"])
            assert torch.equal(again["forces"], out["forces"])


def test_two_ethanols_by_nve(trained):
    """Energy is conserved, and each of the batch moves as it does alone."""
    import mfmd

    model = mfmd.torchsim.MfmdModel(trained[0], device="cpu", precision="double", compute_stress=False)
    second = ethanol()
    second.rattle(0.02, seed=1)

    def run(structures):
        dt, kT = (torch.tensor(x, dtype=torch.float64) for x in (0.5 * ase.units.fs, 0.0))
        state = ts.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
        if callable(ts.integrators.nve):  # up to 0.3
            begin, step = ts.integrators.nve(model, dt=dt, kT=kT, seed=0)
            state = begin(state)
        else:
            state, step = ts.nve_init(state, model, kT=kT), lambda state: ts.nve_step(state, model, dt=dt)
        energies = []
        for _ in range(40):
            state = step(state)
            kinetic = (state.momenta**2).sum(1) / (2 * state.masses)
            energies.append(state.energy + torch.zeros_like(state.energy).index_add(0, state.system_idx, kinetic))
        return state.positions.numpy(), torch.stack(energies).numpy()

    together, energies = run([ethanol(), second])
    np.testing.assert_allclose(together[:9], run([ethanol()])[0], atol=1e-10)
    np.testing.assert_allclose(together[9:], run([second])[0], atol=1e-10)
    assert np.ptp(energies, axis=0).max() < 2e-3 * 9


def stating(systems=2, place="cpu", **said):
    """A state of ethanols that says these of itself: in its extras, where this version has them, else as fields."""
    state = ts.io.atoms_to_state([ethanol()] * systems, torch.device(place), torch.float64)
    for key, value in said.items():
        value = torch.tensor(value, dtype=torch.float64, device=place)
        if hasattr(state, "system_extras"):
            (state.atom_extras if len(value) > systems else state.system_extras)[key] = value
        else:
            setattr(state, key, value)
    return state


@pytest.mark.parametrize(
    "said, sentence",
    [
        ({"charge": [0.0, 1.0]}, "it has charge [+]1, multiplicity 2, and head middle was trained on neutral"),
        ({"spin": [2.0, 1.0]}, "system 0: spin is 2, which may be 2S or 2S [+] 1"),
        ({"charge": [0.0, 0.5]}, "system 1: charge is 0.5, which is no whole number"),
        ({"charge": [0.0, 0.0], "spin": [1.0, 1.0]}, None),
        ({"charge": [0.0, 0.0], "spin": [0.0, 0.0]}, None),
        ({"total_charge": [-1.0, 0.0]}, "it has charge -1, multiplicity 2"),
        ({"total_spin": [0.0, 1.5]}, "system 1: total_spin is 1.5"),
        ({"total_magnetization": [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]}, "it has charge 0, multiplicity 3"),
        ({"partial_charges": [*[0.0] * 9, 0.5, *[0.0] * 8]}, "charges of the atoms add up to [+]0.5"),
        ({"partial_charges": [0.4, -0.4, *[0.0] * 16]}, None),
        (
            {"partial_charges": [0.4, *[0.0] * 16, -0.4]},
            "charges of the atoms add up to [+]0.4",
        ),  # of two systems, each of which is charged
        (
            {"charges": [0.0, 1.0, *[0.0] * 16]},
            "charge 0, and the sum of the charges of the atoms says 1|it has charge [+]1",
        ),  # of atoms, by their number
        (
            {"partial_charges": [1.0, *[0.0] * 17], "formal_charges": [-1.0, *[0.0] * 17]},
            "another sum of the charges of the atoms says|charge 0, and the sum of the charges",
        ),
        ({"magnetic_moments": [1.0, -1.0, *[0.0] * 16]}, "magnetic moments"),
        ({"charge": [1.0]}, "charge has the shape [(]1,[)] for 2 systems of 18 atoms"),
    ],
)
def test_what_a_state_says_of_charge_and_spin(model_file, said, sentence):
    import mfmd
    from mfmd.engine import InputError

    model = mfmd.torchsim.MfmdModel(model_file, device="cpu", compute_stress=False)
    state = stating(**said)
    if not hasattr(state, "system_extras") and said.keys() - {"charge", "spin"}:
        pytest.skip("this version of TorchSim has no extras")
    if sentence is None:
        assert torch.equal(model(state)["energy"], model(stating())["energy"])
    else:
        with pytest.raises(InputError, match=sentence):
            model(state)


@pytest.mark.parametrize("spin, meant", [("2S", 2.0), ("2S+1", 3.0)])
def test_a_batch_of_states(charged_file, device, spin, meant):
    """Each system in its own, whatever the others are; a batch that says something else next is another."""
    import mfmd
    from mfmd.engine import Engine

    place = device_of(device)
    model = mfmd.torchsim.MfmdModel(charged_file, device=place, precision="double", compute_stress=False, spin=spin)
    engine = Engine(charged_file, "double", "cpu" if device == "cpu" else "cuda")
    a = ethanol()
    for states in ([(0, 1), (1, 2), (0, 3)], [(-1, 2), (0, 3), (0, 1)]):
        out = model(stating(3, place, charge=[float(q) for q, _ in states], spin=[m + meant - 3.0 for _, m in states]))
        wanted = engine.compute_batch([(a.positions, a.numbers, None, (False,) * 3)] * 3, states=states, terms=[("high", 1.0)])
        np.testing.assert_allclose(out["energy"].cpu(), [one["energy"] for one in wanted], rtol=0, atol=1e-9)
        np.testing.assert_allclose(out["forces"].cpu(), np.concatenate([one["forces"] for one in wanted]), rtol=0, atol=1e-9)
        assert len(set(out["energy"].tolist())) == 3


def test_the_system_that_is_far_outside_is_told_once(trained, device):
    """Of a batch, the one whose C-O bond is stretched; what ASE says of it."""
    import mfmd

    place, far = device_of(device), stretched()
    structures = [ethanol(), far, ethanol()]
    for a in structures:
        a.center(vacuum=5.0)
        a.pbc = False
    state = ts.io.atoms_to_state(structures, place, torch.float64)
    model = mfmd.torchsim.MfmdModel(trained[0], device=place, compute_stress=False)
    alone = mfmd.Calculator(trained[0])
    with pytest.warns(mfmd.Extrapolation) as caught:
        alone.calculate(far)
    (alarm,) = (str(w.message) for w in caught if w.category is mfmd.Extrapolation)
    assert alarm.startswith(alone.outside)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mfmd.Extrapolation)
        model(state), model(state)
        within = ts.io.atoms_to_state(structures[:1], place, torch.float64)
        mfmd.torchsim.MfmdModel(trained[0], device=place, compute_stress=False)(within)
    told = [str(w.message) for w in caught if w.category is mfmd.Extrapolation]
    assert told == [f"system 1 is {alone.outside}"]
