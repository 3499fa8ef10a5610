"""mfmd export: an archive for a host, from a model file."""

from mfmd import Error, progress

MDP = {  # what GROMACS is to be told beside the file's name
    "nnpot-active": "true", "nnpot-modelfile": None, "nnpot-input-group": "System", "nnpot-model-input1": "atom-positions",
    "nnpot-model-input2": "atom-numbers", "nnpot-model-input3": "box", "nnpot-model-input4": "pbc",
}  # fmt: skip


def run(arguments):
    with progress.task(f"writing {arguments.output}"):
        words, more = {"openmm": _openmm, "gromacs": _gromacs, "torchscript": _torchscript}[arguments.host](arguments)
    print(f"{arguments.output}: {words}")
    return {"archive": arguments.output, "host": arguments.host} | more


def _openmm(arguments):
    """Writes it; what there is to say, in words and as a dict."""
    from mfmd.hosts import openmm

    if arguments.topology is None:
        raise Error("--topology: TorchForce is not told which atoms there are; name a PDB file")
    periodic = openmm.write_archive(
        arguments.output, arguments.model, arguments.topology, head=arguments.head, precision=arguments.precision, **_state(arguments)
    )
    words = (
        f"load it with force = openmmtorch.TorchForce({arguments.output!r}); force.setOutputsForces(True); "
        f"force.setUsesPeriodicBoundaryConditions({periodic})\nin a process that has called mfmd.openmm.load_torchforce()"
    )
    return words, {"periodic": periodic}


def _gromacs(arguments):
    from mfmd.hosts import gromacs

    if arguments.topology is not None:
        raise Error("--topology: GROMACS gives atomic numbers and box itself; leave it out")
    gromacs.write_archive(arguments.output, arguments.model, arguments.head, arguments.precision, **_state(arguments))
    mdp = MDP | {"nnpot-modelfile": arguments.output}
    lines = "\n".join(f"{key} = {value}" for key, value in mdp.items())
    state = f"of charge {arguments.charge or 0}, multiplicity {arguments.multiplicity or 'the lowest that the electrons can have'}"
    return f"{state}; in the mdp file, with box and pbc in a periodic box alone:\n{lines}", {"mdp": mdp}


def _state(arguments):
    return {key: getattr(arguments, key) for key in ("charge", "multiplicity", "allow_unseen_state")}


def _torchscript(arguments):
    from mfmd.engine import load_model
    from mfmd.training import export

    if any(_state(arguments).values()):
        raise Error("--charge, --multiplicity: this archive is told them with each structure; leave them out")
    export.write_torchscript(arguments.output, load_model(arguments.model))
    return "the model file with TorchScript in it, which TorchForce, GROMACS and torch.jit.load need", {}
