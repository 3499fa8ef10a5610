"""TorchSim: its own check of a model, the engine's numbers, and a run of a batch."""

import ase.units
import numpy as np
import pytest
from conftest import ELEMENTS, LEVELS, ethanol, need, random_cell, random_model, write

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

    path = write(random_model(), tmp_path / "m.pt", elements=(*ELEMENTS, 14, 26))
    place = device_of(device)
    validate_model_outputs(mfmd.torchsim.MfmdModel(path, device=place, precision=precision), place, torch.float64)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_batch_has_the_engines_numbers(model_file, periodic, device):
    import mfmd
    from mfmd.engine import Engine, InputError

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
            with pytest.raises(InputError, match="compute_stress=False"):
                model(state)


def test_two_ethanols_by_nve(trained):
    """Energy is conserved, and each of the batch moves as it does alone."""
    import mfmd

    model = mfmd.torchsim.MfmdModel(trained[0], device="cpu", precision="double", compute_stress=False)
    second = ethanol()
    second.rattle(0.02, seed=1)

    def run(structures):
        begin, step = ts.integrators.nve(
            model, dt=torch.tensor(0.5 * ase.units.fs, dtype=torch.float64), kT=torch.tensor(0.0, dtype=torch.float64), seed=0
        )
        state = begin(ts.io.atoms_to_state(structures, torch.device("cpu"), torch.float64))
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
