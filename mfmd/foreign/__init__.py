"""Weights that others have trained, under our names; a file a package.

read(source)    a folder of matgl or a checkpoint of torchmd-net -> (training.model.Model, {level: elements}, provenance)
"""


def read(source, level="imported", elements=None, dtype=None, energy_unit=None, length_unit=None):
    """The model of a foreign file, which computes what its own package computes.

    Parameters
    ----------
    source : folder that matgl writes (model.json and state.pt), or checkpoint file of torchmd-net
    level : name of the one level that the model gets
    elements : symbols of the elements that the level keeps; by default all that the source was trained on, where it says so
    dtype : torch.float32 or torch.float64, of the weights; by default as in the file. E0 and scale are double always
    energy_unit, length_unit : of a checkpoint of torchmd-net, names of mfmd.units; by default what its ZBL prior says, else eV and Å with a Note

    Returns
    -------
    (training.model.Model, {level: atomic numbers}, provenance), as `training.export.write_model` takes them

    Raises
    ------
    SourceError : what cannot be represented, is not known here, is damaged or missing; names the file, what was found and the remedy
    """
    from pathlib import Path

    from mfmd.foreign import matgl, torchmdnet
    from mfmd.foreign.source import SourceError

    path = Path(source)
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        if _is_ours(path):
            raise SourceError(f"{path}: is a model file of mfmd already; training and every host take it as it is")
        return torchmdnet.read(path, level, elements, dtype, energy_unit, length_unit)
    if not (path / "model.json").is_file():
        raise SourceError(
            f"{path}: no model.json in it, so this is no folder that matgl has written; of torchmd-net name the checkpoint file"
        )
    if energy_unit or length_unit:
        raise SourceError(f"{path}: matgl's energies are in eV and its lengths in Å; leave the units out")
    return matgl.read(path, level, elements, dtype)


def _is_ours(path):
    from mfmd.engine import ModelFileError, load_model

    try:
        load_model(path)
    except ModelFileError:
        return False
    return True
