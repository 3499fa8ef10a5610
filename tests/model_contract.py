"""What every kind of model must pass, from training to the engine. A kind inherits this class and says how it is made."""

import abc
import copy

import backends
import numpy as np
import pytest
from conftest import ELEMENTS, ethanol, random_cell, write

from mfmd.engine import Engine, ModelFileError, load_model

STRUCTURES = (ethanol, lambda: random_cell(5, atoms=12), lambda: random_cell(6, small=True))


def in_state(make, charge, multiplicity):
    """A structure that says its charge and multiplicity."""

    def made():
        atoms = make()
        atoms.info |= {"charge": charge, "multiplicity": multiplicity}
        return atoms

    return made


class Kind(abc.ABC):
    structures = STRUCTURES  # the first is that of a training step
    states = None  # that its levels were trained on, as its files say
    error_bars = ()  # levels whose energies come with one
    format = 1  # the lowest that its files can be of
    optional = ()  # tensors that a file may lack

    @abc.abstractmethod
    def make(self, seed):
        """A training.model.Model in double with random weights, of which one seed gives one, and forces of a few eV/Å."""

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, tmp_path_factory):
        torch = pytest.importorskip("torch")
        torch.set_default_dtype(torch.float64)
        model = cls().make(0).eval()
        return model, cls.write(model, tmp_path_factory.mktemp("kind") / "model.pt")

    @classmethod
    def write(cls, model, path):
        return write(model, path, states=cls.states and dict.fromkeys(model.levels, cls.states))

    def test_the_engine_computes_what_the_torch_model_does(self, made):
        """Energies to 1e-10 relative after E0, forces to 1e-9 eV/Å, virials to 1e-9 eV an atom."""
        model, path = made
        for level in model.levels:
            wanted, got = backends.reference(model, level), backends.engine(path, level)
            for atoms in (make() for make in self.structures):
                (e, f, v), (e2, f2, v2) = got(atoms), wanted(atoms)
                assert e == pytest.approx(e2, rel=1e-13, abs=1e-10 * len(atoms))
                np.testing.assert_allclose(f, f2, rtol=0, atol=1e-9)
                if atoms.pbc.all():
                    np.testing.assert_allclose(v, v2, rtol=0, atol=1e-9 * len(atoms))

    @pytest.mark.parametrize("precision", ["double", "single"])
    def test_tables_and_precisions(self, made, precision, device):
        """Tables within 1e-6 eV an atom and 1e-5 eV/Å; single precision within 2e-5 of the largest force, or eV/Å."""
        model, path = made
        for level in model.levels:
            wanted, got = backends.engine(path, level), backends.engine(path, level, precision, "table", device=device)
            for atoms in (make() for make in self.structures):
                (e, f, _), (e2, f2, _) = got(atoms), wanted(atoms)
                assert abs(e - e2) < (1e-6 if precision == "double" else 1e-5) * len(atoms)
                np.testing.assert_allclose(f, f2, rtol=0, atol=1e-5 if precision == "double" else 2e-5 * max(1.0, np.abs(f2).max()))

    def test_forces_and_virial_are_slopes(self, made):
        model, path = made
        atoms, h = random_cell(7, small=True, atoms=5), 1e-4
        for level in model.levels:
            compute = backends.engine(path, level)
            _, forces, virial = compute(atoms)
            for i, a in ((0, 0), (2, 1), (4, 2)):
                assert forces[i, a] == pytest.approx(-backends.slope_along(compute, atoms, i, a, h), abs=1e-6 * np.abs(forces).max())
            for a, b in ((0, 0), (1, 2)):
                assert -virial[a, b] == pytest.approx(backends.slope_of_strain(compute, atoms, a, b, h), abs=1e-6 * np.abs(virial).max())

    def test_isolated_atoms_return_their_reference_energies(self, made, device):
        model, path = made
        engine = Engine(path, "double", device)
        for level in model.levels:
            for z in ELEMENTS:
                wanted = model.constant(level) + sum(float(model.heads[h].e0[z]) for h in model.chain(level))
                assert engine.compute(np.zeros((1, 3)), [z], terms=[(level, 1.0)])["energy"] == pytest.approx(wanted, abs=1e-9)

    def test_energies_and_forces_can_be_trained(self, made):
        """The gradient of a loss of both reaches every weight, as finite differences say."""
        import torch

        from mfmd.training import batches

        model = copy.deepcopy(made[0]).train()
        batch = batches.collate([backends.structure(self.structures[0]())], [], model.backbone.radial.cutoff, torch.float64)
        forces = torch.linspace(-1, 1, 27, dtype=torch.float64).view(9, 3)

        def loss():
            p = model(batch, forces=model.levels)
            return sum(((p[level].forces - forces) ** 2).sum() + p[level].network_energy.sum() ** 2 for level in model.levels)

        begin = loss()
        begin.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            k = int(gradient.abs().argmax())
            h, ends = 1e-5 * max(1.0, float(flat[k].abs())), []
            for sign in (1, -1):
                flat[k] += sign * h
                ends.append(float(loss().detach()))
                flat[k] -= sign * h
            # A constant of a head is none of the difference to an isolated atom: its gradient is zero, but for rounding.
            assert float(gradient[k]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-9 * float(begin)), name

    def test_a_checkpoint_is_the_model(self, made, tmp_path):
        import torch

        model = made[0]
        torch.save(model.state_dict(), tmp_path / "state.pt")
        other = self.make(1).eval()
        atoms, level = ethanol(), model.levels[-1]
        assert backends.reference(other, level)(atoms)[0] != backends.reference(model, level)(atoms)[0]
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for a, b in zip(backends.reference(other, level)(atoms), backends.reference(model, level)(atoms), strict=True):
            assert np.array_equal(a, b)

    def test_its_file_says_what_it_is(self, made, tmp_path):
        """Levels, elements, format and error bars; written again it is the same to the byte; as TorchScript it is the last level."""
        import torch

        from mfmd.engine import load_torch_host

        model, path = made
        engine = Engine(path, "double")
        assert engine.levels == model.levels and list(engine.with_error_bars) == list(self.error_bars)
        assert engine.metadata["format"] == self.format
        assert all(level["elements"] == list(ELEMENTS) for level in engine.metadata["levels"])
        assert load_model(self.write(model, tmp_path / "again.pt")).bytes == load_model(path).bytes
        atoms = ethanol()
        out = engine.compute(atoms.positions, atoms.numbers, terms=[(level, 1.0) for level in model.levels], error_bars=True)
        assert [bool(np.isfinite(e) and e > 0) for e in out["term_errors"]] == [level in self.error_bars for level in model.levels]
        load_torch_host()
        module = torch.jit.load(str(path))
        energy = module(torch.tensor(atoms.positions), torch.tensor(atoms.numbers), torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool))[0]
        assert float(energy) == pytest.approx(out["term_energies"][-1], rel=1e-14)

    def test_its_file_can_be_read_back(self, made, tmp_path):
        """Into a model that predicts the same, whose file is the same but for the last digits of E0."""
        from mfmd.training.start import read_model

        model, path = made
        back, header = read_model(path)
        assert back.backbone.architecture == model.backbone.architecture and back.levels == model.levels
        assert header["provenance"] == {"made": "by the tests"}
        atoms = ethanol()
        for level in model.levels:
            assert back.chain(level) == model.chain(level)
            for a, b in zip(backends.reference(back, level)(atoms), backends.reference(model, level)(atoms), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-14, atol=0)
        again = self.write(back, tmp_path / "again.pt")
        for name in backends.tensors(path):
            a, b = backends.tensor(path, name), backends.tensor(again, name)
            np.testing.assert_allclose(a, b, rtol=1e-14 if name.endswith((".e0", ".alone")) else 0, atol=0, err_msg=name)

    def test_every_weight_of_its_file_is_needed(self, made, tmp_path):
        """Left out, of another shape, or not finite: refused by its name."""
        path = made[1]
        for name in backends.tensors(path):
            for damage in (*([] if name in self.optional else [backends.without]), backends.reshaped, backends.poisoned):
                with pytest.raises(ModelFileError, match=f"{name}\\b"):
                    load_model(backends.rebuilt(path, tmp_path / "bad.pt", tensors=damage(name)))
