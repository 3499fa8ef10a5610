"""openmm-ml: MLPotential("mfmd", modelPath=…). Imported with openmmml itself, so nothing heavy is imported here before it is used.

potential = MLPotential("mfmd", modelPath="model.pt")
system = potential.createSystem(topology, head="cctz", precision="single")
mixed = potential.createMixedSystem(topology, mm_system, ml_atoms, interpolate=True)
"""

import warnings

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from mfmd import Note


class MfmdPotentialImplFactory(MLPotentialImplFactory):
    """What the entry point `mfmd` of the group `openmmml.potentials` names."""

    def createImpl(self, name, modelPath=None, **arguments):
        return MfmdPotentialImpl(modelPath)


class MfmdPotentialImpl(MLPotentialImpl):
    """One head of a model file.

    Arguments of createSystem and createMixedSystem beside openmm-ml's own: head, host, precision, threads, heads, terms, parameters, periodic, as for
    mfmd.openmm.create_force; also charge, multiplicity, fragments and allow_unseen_state. InputError for others. The force is periodic where the
    topology has a box or the System is periodic, as openmm-ml's own are; with interpolate=True openmm-ml does not show the System.
    """

    def __init__(self, model_path):
        self.model_path = model_path

    def getMLLongRange(self):
        """openmm-ml 1.8 asks: a model sees what is within its layers' cutoffs, and nothing beyond."""
        return False

    def addForces(self, topology, system, atoms, forceGroup, **arguments):
        from mfmd import openmm

        if self.model_path is None:
            raise openmm.InputError("MLPotential('mfmd') needs modelPath, the path of a model.pt")
        known = (
            "head", "host", "precision", "threads", "heads", "terms", "parameters", "periodic", "charge", "multiplicity", "fragments", "allow_unseen_state",
        )  # fmt: skip
        if unknown := [key for key in arguments if key not in known]:
            raise openmm.InputError(f"mfmd has no argument {unknown[0]!r}; it has {', '.join(known)}")
        if arguments.get("periodic") is None:
            arguments["periodic"] = topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
            if not arguments["periodic"] and system.getNumParticles() == 0:
                warnings.warn(
                    "the topology has no box, and openmm-ml does not show the System it interpolates; the model is taken as not periodic, "
                    "unless periodic=True is said",
                    Note,
                    stacklevel=2,
                )
        force = openmm.create_force(self.model_path, topology, atoms, **arguments)
        force.setForceGroup(forceGroup)
        system.addForce(force)
