"""mfmd export: an archive for a host, from a model file."""

from mfmd import Error


def run(arguments):
    if arguments.host == "gromacs":
        from mfmd.hosts import gromacs

        if arguments.topology is not None:
            raise Error("--topology: GROMACS gives atomic numbers and box itself; leave it out")
        gromacs.write_archive(arguments.output, arguments.model, arguments.head, arguments.precision)
        print(f"{arguments.output}: in the mdp file, with box and pbc in a periodic box alone:\n{GROMACS.format(arguments.output)}")
        return
    if arguments.host == "torchscript":
        from mfmd.engine import load_model
        from mfmd.training import export

        export.write_torchscript(arguments.output, load_model(arguments.model))
        print(f"{arguments.output}: the model file with TorchScript in it, which TorchForce, GROMACS and torch.jit.load need")
        return
    from mfmd.hosts import openmm

    if arguments.topology is None:
        raise Error("--topology: TorchForce is not told which atoms there are; name a PDB file")
    periodic = openmm.write_archive(
        arguments.output, arguments.model, arguments.topology, head=arguments.head, precision=arguments.precision
    )
    print(
        f"{arguments.output}: load it with force = openmmtorch.TorchForce({arguments.output!r}); force.setOutputsForces(True); "
        f"force.setUsesPeriodicBoundaryConditions({periodic})"
    )
    print("in a process that has called mfmd.openmm.load_torchforce()")


GROMACS = """nnpot-active = true
nnpot-modelfile = {}
nnpot-input-group = System
nnpot-model-input1 = atom-positions
nnpot-model-input2 = atom-numbers
nnpot-model-input3 = box
nnpot-model-input4 = pbc"""
