"""mfmd import: a model file of weights that others have trained."""

import os

from mfmd import Error, progress
from mfmd.commands import info


def run(arguments):
    with progress.task("loading torch"):
        from mfmd import foreign
        from mfmd.engine import load_model
        from mfmd.training import export

    elements = None if arguments.elements is None else arguments.elements.replace(",", " ").split()
    if os.path.isdir(arguments.output):
        raise Error(f"--output: {arguments.output} is a folder; name the model file, such as {os.path.join(arguments.output, 'model.pt')}")
    with progress.task(f"reading {arguments.source}"):
        model, known, provenance = foreign.read(
            arguments.source, arguments.level, elements, energy_unit=arguments.energy_unit, length_unit=arguments.length_unit
        )
    with progress.task(f"writing {arguments.output}"):
        export.write_model(arguments.output, model, known, provenance)
    return {"model": arguments.output, "header": info.describe(arguments.output, load_model(arguments.output))}
