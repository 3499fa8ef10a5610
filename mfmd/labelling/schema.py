"""The config of a labelling campaign: levels of theory, sampling."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_serializer, model_validator

from mfmd import Error
from mfmd.config import HomePath, NotNegative, Positive, Section
from mfmd.structures.state import SPINS

XTB = ("GFN1-xTB", "GFN2-xTB")
CORRELATED = ("mp2", "ccsd", "ccsd(t)")


class LabelError(Error):
    """Structures or labels cannot be made; names what and why."""


def _spelling(name):
    """A method as it is written here: whatever its case, GFN2-xTB and gfn2 are one."""
    if not isinstance(name, str):
        return name
    known = {alias: xtb for xtb in XTB for alias in (xtb.lower(), xtb.lower().replace("-", ""), xtb[:4].lower())}
    name = name.strip().lower()
    return known.get(name, name)


class Method(Section):
    """One calculation of quantum chemistry."""

    method: Annotated[str, BeforeValidator(_spelling)]  # GFN1-xTB, GFN2-xTB, hf, mp2, ccsd, ccsd(t), or a functional by its name in PySCF
    basis: str | None = None  # by its name in PySCF; xTB has its own
    cartesian: bool = False  # d functions and up
    density_fitting: bool = False  # of Hartree-Fock or Kohn-Sham
    grid: Annotated[int, Field(ge=0, le=9)] = 3  # of the functional, PySCF's levels
    frozen_core: bool = True  # of correlated methods

    @model_validator(mode="after")
    def _has_a_basis(self):
        if (self.method in XTB) != (self.basis is None):
            raise ValueError(f"basis: {self.method} {'has a basis of its own' if self.method in XTB else 'needs one'}")
        return self


class Correction(Method):
    """A further calculation that counts in a level's energy."""

    coefficient: float = 1.0  # what its energy and forces are multiplied by


class Level(Method):
    """One level of theory."""

    corrections: list[Correction] = []  # added to it, such as MP2 in a large basis and, times -1, in a small one
    forces: Literal["all", "test", "none"] = "all"  # on which structures; the test structures alone, for instance
    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] = (
        1.0  # labelled of train and val: a share, or how many; test is whole
    )
    max_spin_contamination: NotNegative = (
        0.1  # of open shells, ⟨S²⟩ of the Hartree-Fock or Kohn-Sham state above S (S + 1); beyond it a label fails
    )

    @model_validator(mode="after")
    def _forces_are_a_slope(self):
        for method, _ in self.parts:
            if self.forces != "none" and method.density_fitting and method.method in ("ccsd", "ccsd(t)"):
                raise ValueError(
                    f"forces: PySCF's gradients of {method.method} take exact integrals where density_fitting gives the energy fitted ones, so that they "
                    "are not its slope; set forces: none, or leave density_fitting out"
                )
        return self

    @property
    def parts(self):
        """[(Method, its coefficient)]: the level's own and its corrections."""
        return [(self, 1.0), *((c, c.coefficient) for c in self.corrections)]


class Sampling(Section):
    """Langevin dynamics from every structure, at every temperature; each split from a trajectory of its own."""

    method: Annotated[Literal[XTB], BeforeValidator(_spelling)] = "GFN2-xTB"  # whose surface the dynamics is on
    temperatures: Annotated[list[Positive], Field(min_length=1)] = [300.0, 500.0, 700.0]  # K
    train: Annotated[int, Field(ge=0)] = 20  # frames of a trajectory
    val: Annotated[int, Field(ge=0)] = 2  # likewise
    test: Annotated[int, Field(ge=0)] = 5  # likewise
    interval: Positive = 50.0  # fs between frames
    equilibration: NotNegative = 250.0  # fs before the first
    timestep: Positive = 0.5  # fs
    friction: Positive = 0.02  # 1/fs

    @model_validator(mode="after")
    def _frames_differ(self):
        if self.interval < self.timestep:
            raise ValueError(f"interval: {self.interval:g} fs between frames is less than the timestep of {self.timestep:g} fs")
        return self


class Named(Section):
    """Structures, and what they do not say of their charge and spin. A name by itself is one as well."""

    structure: Annotated[str, AfterValidator(os.path.expanduser)]  # a file that ASE reads, or the name of a molecule in ase.build.molecule
    charge: int | None = None  # elementary charges; where neither it nor the structure says it, 0
    multiplicity: Annotated[int, Field(ge=1)] | None = None  # 2S + 1; where neither says it, the lowest that the electrons can have

    @model_validator(mode="before")
    @classmethod
    def _by_itself(cls, value):
        return {"structure": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, whole):
        return {key: value for key, value in whole(self).items() if value is not None} if self.said else self.structure

    @property
    def said(self):
        """Of charge and multiplicity those that are said."""
        return {key: value for key in ("charge", "multiplicity") if (value := getattr(self, key)) is not None}


class Config(Section):
    out: HomePath  # folder of structures, labels and what they were made with
    seed: int = 0  # of the dynamics, and of which structures `keep` keeps
    structures: Annotated[
        list[Named], Field(min_length=1)
    ]  # files that ASE reads, or names of molecules in ase.build.molecule, by themselves or with charge and multiplicity
    spin: Literal[SPINS] | None = None  # what a key `spin` of files is; without it such a key is refused where it may be both
    sampling: Sampling | None = None  # without it the structures are labelled as they are
    levels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Level]  # cheapest first
    workers: Annotated[
        int, Field(ge=1, default_factory=lambda: os.cpu_count() or 1)
    ]  # labels at a time, on a thread each; by default every core

    @field_validator("structures", mode="before")
    @classmethod
    def _one(cls, value):
        return value if isinstance(value, list) else [value]
