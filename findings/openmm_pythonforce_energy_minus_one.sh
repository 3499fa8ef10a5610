#!/usr/bin/env bash
# Package:  openmm 8.6.1 (openmm.PythonForce), with numpy 2.4.6 and 2.3.5
#
# Behaviour: if the function given to PythonForce returns the energy as a numpy
#   array with one element, the same code gives the right energy with numpy 2.3.5
#   and exactly -1 kJ/mol with numpy 2.4.6. There is no error or warning with 2.4.6
#   (2.3.5 gives numpy's DeprecationWarning, hidden by default) and the forces
#   stay right. A plain list [energy] gives -1 with both.
#
# Why it matters: many models return the energy with shape (1,). After an
#   upgrade of numpy alone, dynamics still runs (the forces are right), but
#   everything that uses the energy is wrong: reported energies, energy drift,
#   Monte Carlo steps (a barostat, replica exchange), reweighting. An energy of
#   -1 that never changes also looks like perfect conservation of this term.
#
# Expected: the energy of the one element, or an exception that says the
#   returned energy is not a number (numpy 2.4 itself raises TypeError for
#   float(array)).
#
# Seen on 2026-11-27 (70 kJ/mol is right):
#   openmm 8.6.1, numpy 2.4.6
#   float            energy   70.0 kJ/mol  forces ok: True
#   array shape ()   energy   70.0 kJ/mol  forces ok: True
#   array shape (1,) energy   -1.0 kJ/mol  forces ok: True
#   list [energy]    energy   -1.0 kJ/mol  forces ok: True
#   openmm 8.6.1, numpy 2.3.5
#   float            energy   70.0 kJ/mol  forces ok: True
#   array shape ()   energy   70.0 kJ/mol  forces ok: True
#   array shape (1,) energy   70.0 kJ/mol  forces ok: True
#   list [energy]    energy   -1.0 kJ/mol  forces ok: True
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
pip() { venv/bin/python -m pip install -q --disable-pip-version-check "$@"; }

cat > energy.py <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import openmm as mm
from openmm import unit

expected = dict(zip(("float", "array shape ()", "array shape (1,)", "list [energy]"),
                    map(float, sys.argv[1:])))
wrap = {"float": float, "array shape ()": np.array,
        "array shape (1,)": lambda e: np.array([e]), "list [energy]": lambda e: [e]}


def one_particle(kind):
    """Harmonic well, E = 500 r^2 kJ/mol/nm^2, one particle at (0.1, 0.2, 0.3) nm."""
    def well(state):
        x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        return wrap[kind](float(500.0 * (x**2).sum())), -1000.0 * x

    system = mm.System()
    system.addParticle(1.0)
    system.addForce(mm.PythonForce(well))
    context = mm.Context(system, mm.VerletIntegrator(0.001),
                         mm.Platform.getPlatformByName("Reference"))
    context.setPositions([mm.Vec3(0.1, 0.2, 0.3)])
    state = context.getState(energy=True, forces=True)
    forces = state.getForces(asNumpy=True)._value
    return (state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
            bool(np.allclose(forces, [[-100, -200, -300]])))


print(f"openmm {version('openmm')}, numpy {np.__version__}")
same = True
for kind, want in expected.items():
    energy, forces_ok = one_particle(kind)
    print(f"{kind:16s} energy {energy:6.1f} kJ/mol  forces ok: {forces_ok}")
    same &= abs(energy - want) < 1e-6 and forces_ok
sys.exit(0 if same else "no longer as recorded")
PY

pip openmm==8.6.1 numpy==2.4.6
venv/bin/python energy.py 70 70 -1 -1
pip numpy==2.3.5
venv/bin/python -W ignore::DeprecationWarning energy.py 70 70 70 -1
echo "as recorded"
