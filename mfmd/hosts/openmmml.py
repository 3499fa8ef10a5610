"""openmm-ml: MLPotential("mfmd", modelPath=…). Imported with openmmml itself, so nothing heavy is imported here before it is used.

potential = MLPotential("mfmd", modelPath="model.pt")
system = potential.createSystem(topology, head="cctz", precision="single")
mixed = potential.createMixedSystem(topology, mm_system, ml_atoms, interpolate=True)
"""

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory


class MfmdPotentialImplFactory(MLPotentialImplFactory):
    """What the entry point `mfmd` of the group `openmmml.potentials` names."""

    def createImpl(self, name, modelPath=None, **arguments):
        return MfmdPotentialImpl(modelPath)


class MfmdPotentialImpl(MLPotentialImpl):
    """One head of a model file.

    Arguments of createSystem and createMixedSystem: head, host, precision, threads, heads, terms, parameters, as for
    mfmd.openmm.create_force; others are openmm-ml's own.
    """

    def __init__(self, model_path):
        self.model_path = model_path

    def addForces(self, topology, system, atoms, forceGroup, **arguments):
        from mfmd import openmm

        if self.model_path is None:
            raise openmm.InputError("MLPotential('mfmd') needs modelPath, the path of a model.pt")
        ours = {k: arguments[k] for k in ("head", "host", "precision", "threads", "heads", "terms", "parameters") if k in arguments}
        force = openmm.create_force(self.model_path, topology, atoms, **ours)
        force.setForceGroup(forceGroup)
        system.addForce(force)
