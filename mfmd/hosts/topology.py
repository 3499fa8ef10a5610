"""Start structures: files, and ase.Atoms, as openmm.app.Topology and positions. What they say is kept, or refused by name.

Bonds, which a barostat needs to move molecules whole, are those that the file says; where it says none, of atoms within the sum of their covalent
radii, each 1.3 times as large, but 0.12 to 0.25 Å larger. Masses of the file, and 0 for atoms that are held, are those of the topology's elements.
"""

import dataclasses
import re
import warnings
import zlib
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import openmm
import openmm.app
import openmm.unit as unit
from ase import Atoms
from ase.cell import Cell
from ase.constraints import FixAtoms, FixCartesian
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.io.formats import filetype, open_with_compression

from mfmd import Error, Note
from mfmd.engine import InputError, neighbor_list
from mfmd.hosts import pdb
from mfmd.hosts.states import of_structure
from mfmd.structures.formats import asedb, extxyz
from mfmd.structures.state import StateError, read_states, spelled

STRETCH, LEAST, MOST = 0.3, 0.12, 0.25  # what is added to a covalent radius: times itself, and at least and at most, Å
FEMTOSECOND = 1e-3  # ps
OTHER = 5e-3  # by which a mass differs, as a part of it, that is no element's usual one
FOREIGN = {
    "velocities": r"v|v(el)?[xyz]|vel(s|os?|ocity|ocities)?|moment(um|a)",
    "masses": r"(atomic)?mass(es)?|isotopes?",
    "held": r"(is)?fix(ed)?(atoms?)?|freeze|frozen|held|constraints?",
    "free": r"free|mobile|movable|movemask|moveflags?|selectivedynamics",
}  # what arrays of other writers mean by their names, without case, - and _
MDL_CHARGES = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}  # codes in the lines of atoms; 4 is a doublet radical
MDL_UNPAIRED = {0: 0, 1: 0, 2: 1, 3: 2}  # of M  RAD: nothing, singlet, doublet, triplet


class MDError(Error):
    """A structure to start from, or a run, that cannot be; names the file or option."""


class Isotope(openmm.app.Element):
    """An element with a mass of its own, Da; 0 where an atom is held. Unlike OpenMM's elements it is not looked up by symbol."""

    def __init__(self, element, mass):
        self._atomic_number, self._name, self._symbol, self._mass = element.atomic_number, element.name, element.symbol, mass * unit.dalton

    @property
    def unusual(self):
        """Whether the mass is another than the element's by more than files differ in."""
        return abs(self.mass / openmm.app.Element.getByAtomicNumber(self.atomic_number).mass - 1) > OTHER

    def __reduce__(self):
        return Isotope, (openmm.app.Element.getByAtomicNumber(self.atomic_number), self.mass.value_in_unit(unit.dalton))


@dataclasses.dataclass
class Start:
    """What a run begins with; positions (atoms, 3) Å, velocities (atoms, 3) Å/ps where the structure has any; what it says of its state beside formal
    charges of the topology: charge, multiplicity or fragments, as mfmd.openmm.create_force takes them."""

    topology: openmm.app.Topology
    positions: np.ndarray
    velocities: np.ndarray | None = None
    state: dict = dataclasses.field(default_factory=dict)


def read_structure(path):
    """(openmm.app.Topology, positions (atoms, 3) Å) of a file; see `read_start`. MDError where it has a state that a topology cannot say."""
    return _without_state(read_start(path), f"{path}: ")


def topology_of(atoms):
    """(openmm.app.Topology, positions (atoms, 3) Å) of ase.Atoms; see `read_structure`."""
    return _without_state(start_of(atoms))


def _without_state(start, told=""):
    numbers, formal = zip(*((a.element.atomic_number, a.formalCharge or 0) for a in start.topology.atoms()), strict=True)
    (plain,), _, _ = read_states(numbers, {"charge": sum(formal)}, pbc=start.topology.getPeriodicBoxVectors() is not None)
    if "fragments" in start.state or plain._asdict() | start.state != plain._asdict():
        raise MDError(
            f"{told}it has a state that an openmm.app.Topology cannot say ({', '.join(f'{key} {value}' for key, value in start.state.items())}); "
            "mfmd.md.read_start and start_of give it too, as .state, for mfmd.openmm.create_system(model, start.topology, **start.state)"
        )
    return start.topology, start.positions


def read_start(path):
    """The Start of a PDB or mmCIF file, or of the last structure in a file that ASE reads.

    A molecule that stands across the boundary is put together. Atoms of one that is bonded to its own image (a crystal, a polymer) have no bonds,
    so that a barostat scales them one by one. A cell is turned so that it is lower triangular, as OpenMM needs it.

    Raises
    ------
    MDError : the file cannot be read, or says what cannot be kept: charges and spins that contradict each other or the electrons, an atom without element
        or one that two elements may be, constraints other than fixed atoms, velocities, masses or held atoms under a name that ASE does not know, a cell
        that OpenMM does not have
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise MDError(f"{path}: there is no such file")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if suffix in (".pdb", ".ent"):
            start = _start_of_residues(path, *pdb.read_pdb(path))
            start.state = pdb.state_said(path)
        elif suffix in (".cif", ".mmcif", ".pdbx") and pdb.is_mmcif(path):
            start = _start_of_residues(path, *pdb.read_mmcif(path))
        else:
            start = start_of(*_last_frame(path), told=f"{path}: ")
    except Error as error:
        raise MDError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise MDError(f"{path}: cannot be read ({error})") from None
    if start.topology.getNumAtoms() < 2:
        raise MDError(f"{path}: it takes two atoms or more for dynamics, and there are {start.topology.getNumAtoms()}")
    return start


def start_of(atoms, said=(), told=""):
    """The Start of ase.Atoms; see `read_start`. said : bonds, pairs of indices; told : what Notes begin with."""
    state, formal = _state(atoms), atoms.get_initial_charges()
    formal = [int(q) for q in formal] if np.any(formal) and np.array_equal(formal, np.rint(formal)) else [None] * len(atoms)
    if not (atoms.numbers > 0).all():
        raise MDError(f"atom {np.argmin(atoms.numbers)} has no element")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise MDError("the structure is periodic in some directions only, which OpenMM does not have")
    _check_foreign(atoms)
    elements, velocities = _elements(atoms, told), None
    if np.any(atoms.get_momenta()):
        velocities = atoms.get_velocities() * ase.units.fs / FEMTOSECOND
        velocities[[e.mass._value == 0 for e in elements]] = 0
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.pbc.all():
        if abs(atoms.cell.volume) < 1e-3:
            raise MDError("the structure is periodic, and its cell has no volume")
        cell, rotation = Cell(
            atoms.cell.array * np.sign(np.linalg.det(atoms.cell.array))
        ).standard_form()  # of the same lattice, right-handed
        box = openmm.app.internal.unitcell.reducePeriodicBoxVectors([openmm.Vec3(*v) for v in cell.array] * unit.angstrom)
        atoms.set_cell(np.array(box.value_in_unit(unit.angstrom)))
        atoms.positions = atoms.positions @ rotation.T
        velocities = None if velocities is None else velocities @ rotation.T
    bonds, molecule, endless, positions = _connect(atoms, said, np.full(len(atoms), not said), np.zeros(len(atoms), bool))
    _tell_endless(endless, told)
    # A residue a molecule where the atoms of each stand together, since a topology's atoms are in the order of its residues, or several of those that are so large
    # that names run out; else one an atom.
    together = all(np.all(np.diff(np.flatnonzero(molecule == m)) == 1) for m in set(molecule))
    topology, counts = openmm.app.Topology(), Counter()
    chain, members = topology.addChain(), []
    for k, element in enumerate(elements):
        if not together or molecule[k] == k or counts[element.symbol] == pdb.names(element.symbol):
            residue, counts = topology.addResidue("MOL", chain), Counter()
        counts[element.symbol] += 1
        name = pdb.label(element.symbol, counts[element.symbol]) if together else element.symbol
        members.append(topology.addAtom(name, element, residue, formalCharge=formal[k]))
    for a, b in bonds:
        topology.addBond(members[a], members[b])
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors([openmm.Vec3(*v) for v in atoms.cell.array] * unit.angstrom)
    return Start(topology, positions, velocities, state)


def _state(atoms):
    """What ase.Atoms say of charge and spin, as in Start."""
    try:
        states, fragment, unsaid = of_structure(atoms, atoms.calc and atoms.calc.results)
    except StateError as error:
        raise MDError(str(error)) from None
    if np.size(fragment):
        return {"fragments": spelled(states, fragment)}
    return {key: value for key, value in states[0]._asdict().items() if key not in unsaid}


def _check_foreign(atoms):
    """That no array says, under a name or in a unit that ASE does not know, what a run would begin without."""
    for name, array in atoms.arrays.items():
        plain = name.lower().replace("_", "").replace("-", "")
        kind = next((kind for kind, names in FOREIGN.items() if re.fullmatch(names, plain)), None)
        if name in ("momenta", "masses") or kind is None:  # ASE's own, or of something else
            continue
        numeric = array.dtype.kind in "biuf"
        if kind == "velocities" and not (numeric and not array.any()):
            raise MDError(
                f"its array {name} is not read, since it may be in any unit; write velocities as momenta:R:3, in ASE's units "
                "(atoms.set_velocities(v / (1000 * ase.units.fs)) for v in Å/ps), or remove it"
            )
        usual = np.array([openmm.app.Element.getByAtomicNumber(int(z)).mass._value for z in atoms.numbers])
        if kind == "masses" and not (numeric and array.shape == usual.shape and np.all(np.abs(array / usual - 1) < OTHER)):
            raise MDError(f"its array {name} is not read; write masses as masses:R:1, in Da, or remove it")
        if (kind == "held" and not (numeric and not array.any())) or (kind == "free" and not (numeric and array.all())):
            raise MDError(f"its array {name} is not read; write atoms that are held as move_mask:L:1 (F is held), or remove it")


def _elements(atoms, told):
    """Of each atom; those with a mass of their own, or 0 for an atom that is held, are Isotopes."""
    elements, held = [openmm.app.Element.getByAtomicNumber(int(z)) for z in atoms.numbers], np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixCartesian) and not np.any(constraint.mask):
            continue
        if not isinstance(constraint, FixAtoms) and not (isinstance(constraint, FixCartesian) and np.all(constraint.mask)):
            raise MDError(f"its constraint {type(constraint).__name__} cannot be kept; atoms can be fixed (FixAtoms), and nothing else")
        held[constraint.index] = True
    if atoms.has("masses"):
        masses = atoms.get_masses()
        if not (np.isfinite(masses).all() and (masses > 0).all()):
            raise MDError("its masses are not all more than 0; an atom is held by a constraint (FixAtoms, move_mask)")
        usual = np.array([e.mass._value for e in elements])
        elements = [Isotope(e, m) if abs(m - u) > 1e-6 else e for e, m, u in zip(elements, masses, usual, strict=True)]
        if (other := np.abs(masses / usual - 1) > OTHER).any():
            k = int(np.argmax(other))
            warnings.warn(f"{told}masses are the file's, such as {masses[k]:g} of atom {k} ({elements[k].symbol})", Note, stacklevel=4)
    if held.any():
        warnings.warn(f"{told}{np.sum(held)} of {len(atoms)} atoms are held where they are", Note, stacklevel=4)
    return [Isotope(e, 0.0) if h else e for e, h in zip(elements, held, strict=True)]


def _start_of_residues(path, topology, positions):
    """The Start of a topology with the bonds that its file says. A residue of several atoms in which one has no bond is not said whole."""
    for atom in topology.atoms():
        if atom.element is None:
            raise MDError(f"{path}: atom {atom.index} ({atom.name}) has no element; a model needs one for every atom")
    said = [(a.index, b.index) for a, b in topology.bonds()]
    bonded, residues = {k for pair in said for k in pair}, [[a.index for a in r.atoms()] for r in topology.residues()]
    guessed, alone = np.zeros(topology.getNumAtoms(), bool), np.zeros(topology.getNumAtoms(), bool)
    for members in residues:
        if len(members) == 1 < max(map(len, residues)):
            alone[members] = True  # an ion
        elif not bonded.issuperset(members):
            guessed[members] = True
    box = topology.getPeriodicBoxVectors()
    atoms = Atoms([a.element.atomic_number for a in topology.atoms()], positions)
    if box is not None:
        atoms.set_cell(np.array(box.value_in_unit(unit.angstrom)))
        atoms.pbc = True
    bonds, _, endless, positions = _connect(atoms, said, guessed, alone)
    if more := len(set(bonds) - set(map(_ordered, said))):
        names = dict.fromkeys(a.residue.name for a in topology.atoms() if guessed[a.index])
        warnings.warn(
            f"{path}: does not say all bonds of {', '.join(list(names)[:4])}{' …' if len(names) > 4 else ''}; {more} are found by distance, "
            f"within the sum of covalent radii, each {1 + STRETCH} times as large, but {LEAST} to {MOST} Å larger",
            Note,
            stacklevel=3,
        )
    _tell_endless(endless, f"{path}: ")
    return Start(_rebonded(topology, bonds), positions)


def _rebonded(topology, bonds):
    """A topology with these bonds; what was known of those it had before stays known."""
    kinds = {_ordered((bond[0].index, bond[1].index)): (bond.type, bond.order) for bond in topology.bonds()}
    out, members = openmm.app.Topology(), []
    for chain in topology.chains():
        copied = out.addChain(chain.id)
        for residue in chain.residues():
            of = out.addResidue(residue.name, copied, residue.id, residue.insertionCode)
            members += [out.addAtom(a.name, a.element, of, a.id, a.formalCharge) for a in residue.atoms()]
    for a, b in bonds:
        out.addBond(members[a], members[b], *kinds.get((a, b), (None, None)))
    out.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    return out


def _ordered(pair):
    return min(pair), max(pair)


def _tell_endless(endless, told):
    if endless.any():
        warnings.warn(
            f"{told}{np.sum(endless)} atoms are bonded to their own images (a crystal, a polymer); a barostat scales them one by one",
            Note,
            stacklevel=4,
        )


def _connect(atoms, said, guessed, alone):
    """Who is bonded to whom, and molecules in one piece.

    atoms : ase.Atoms in a lower triangular cell, or without one; said : pairs; guessed, alone : (atoms,) bool, atoms whose bonds are found by
    distance too, and atoms that have none

    Returns
    -------
    bonds : sorted pairs (lower, higher); those of endless molecules are left out
    molecule : (atoms,) of each atom the lowest index of its molecule
    endless : (atoms,) bool, bonded to its own image
    positions : (atoms, 3) Å; endless molecules as they were
    """
    edges = {_ordered(pair): set() for pair in said}  # in which cells the second is, seen from the first
    radii = covalent_radii[atoms.numbers]
    reach = radii + np.clip(STRETCH * radii, LEAST, MOST)
    if len(atoms) and (atoms.pbc.all() or guessed.any()):
        try:
            i, j, images, vectors = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 2 * reach.max())
        except InputError as error:
            raise MDError(str(error)) from None
        bonded = np.linalg.norm(vectors, axis=1) < reach[i] + reach[j]
        i, j, images = i[bonded], j[bonded], images[bonded]
    else:
        i, j, images = (), (), ()
    for a, b, image in zip(i, j, images, strict=True):
        a, b = int(a), int(b)
        if (a, b) in edges or a == b or ((a < b and (guessed[a] or guessed[b])) and not (alone[a] or alone[b])):
            edges.setdefault((a, b), set()).add(tuple(int(s) for s in image))
    far = [pair for pair, cells in edges.items() if not cells]
    if far:  # said, and longer than bonds are: the nearest image
        apart = np.array([atoms.positions[b] - atoms.positions[a] for a, b in far])
        nearest = (
            np.rint((find_mic(apart, atoms.cell, True)[0] - apart) @ np.linalg.inv(atoms.cell)).astype(int)
            if atoms.pbc.all()
            else np.zeros_like(apart, int)
        )
        for pair, image in zip(far, nearest, strict=True):
            edges[pair].add(tuple(int(s) for s in image))
    near = [[] for _ in atoms]
    for (a, b), cells in edges.items():
        for cell in cells:
            near[a].append((b, np.array(cell)))
            near[b].append((a, -np.array(cell)))
    molecule, offset, endless = np.full(len(atoms), -1), np.zeros((len(atoms), 3), int), np.zeros(len(atoms), bool)
    for k in range(len(atoms)):
        if molecule[k] >= 0:
            continue
        molecule[k], todo, members = k, [k], []
        while todo:
            members.append(a := todo.pop())
            for b, cell in near[a]:
                if molecule[b] < 0:
                    molecule[b], offset[b] = k, offset[a] + cell
                    todo.append(b)
                elif np.any(offset[b] != offset[a] + cell):
                    endless[k] = True
        if endless[k]:
            endless[members], offset[members] = True, 0
    bonds = sorted((a, b) for a, b in edges if a != b and not endless[a])
    return bonds, molecule, endless, atoms.positions + offset @ atoms.cell.array


# ------------------------------------------------------------------------------------------------ files that ASE reads


def _last_frame(path):
    """ase.Atoms, and bonds where the file says some."""
    kind = "unknown"
    try:
        kind = filetype(str(path))
        if kind in ("xyz", "extxyz"):
            extxyz.check_counts(path)
        atoms = ase.io.read(str(path), index=-1, do_not_split_by_at_sign=True)
        atoms.info |= asedb.said_in(path, kind)[-1] if kind in ("db", "json") else {}
        several = len(ase.io.read(str(path), index="0:2", do_not_split_by_at_sign=True)) > 1
    except Error:
        raise
    except Exception as error:  # readers raise whatever they meet
        if isinstance(error, KeyError) and error.args[:1] in (("D",), ("T",)):
            raise MDError(
                f"it has the element {error.args[0]}, which ASE does not know; write H, and masses as masses:R:1, in Da"
            ) from None
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        lammps = path.suffix in (".data", ".lmp") or path.name.startswith("data.")
        remedy = "; end the name of a LAMMPS data file in .lammps-data" if lammps else ""
        raise MDError(f"ASE cannot read it as a structure of the kind {kind} ({reason}){remedy}") from None
    if several:
        warnings.warn(f"{path}: of several structures the last is taken", Note, stacklevel=3)
    if kind.startswith("lammps") and "type" in atoms.arrays and np.array_equal(atoms.arrays["type"], atoms.numbers):
        raise MDError("its atoms have types and no elements; write masses or elements into it")
    if kind == "lammps-dump-text":
        _take_masses_of_dump(path, atoms)
    if kind.startswith("lammps") and np.any(atoms.get_momenta()):
        warnings.warn(f"{path}: velocities are taken to be in Å/ps, as in LAMMPS' units metal", Note, stacklevel=3)
    if kind == "gromacs":
        symbols = [pdb.element_named(*names) for names in zip(atoms.arrays["atomtypes"], atoms.arrays["residuenames"], strict=True)]
        for name, residue, found in zip(atoms.arrays["atomtypes"], atoms.arrays["residuenames"], symbols, strict=True):
            if len(found) != 1:
                raise MDError(
                    f"the element of atom {name} of {residue} is {' or '.join(found) or 'unknown'}; use a format that has elements"
                )
        atoms.symbols = [found[0] for found in symbols]
    return atoms, _said_by_mdl(path, atoms) if kind in ("sdf", "mol") else ()


def _take_masses_of_dump(path, atoms):
    """Into ase.Atoms, those of the last frame of a LAMMPS dump, by which ASE finds elements at most."""
    with open_with_compression(str(path), "rt") as file:
        columns, *rows = file.read().rpartition("ITEM: ATOMS ")[2].splitlines()
    if "mass" in (columns := columns.split()):
        rows = [dict(zip(columns, row.split(), strict=True)) for row in rows[: len(atoms)]]
        if "id" in columns:  # ASE's order
            rows.sort(key=lambda row: int(row["id"]))
        velocities = atoms.get_velocities()
        atoms.set_masses([float(row["mass"]) for row in rows])
        atoms.set_velocities(velocities)


def _said_by_mdl(path, atoms):
    """Bonds of an MDL file (V2000), of which ASE reads atoms alone; charges and radicals go into ase.Atoms. MDError where it has isotopes."""
    lines = path.read_text().splitlines()
    count, bonds = int(lines[3][:3]), int(lines[3][3:6])
    charges, unpaired, properties = np.zeros(count, int), 0, False
    for line in lines[4 + count + bonds :]:
        if line.startswith("M  ISO"):
            raise MDError(f"its line {' '.join(line.split())} is not read; use extended XYZ")
        if line.startswith(("M  CHG", "M  RAD")):
            properties = True  # and those of the atoms' lines do not count
            for atom, value in zip(*[iter(map(int, line[9:].split()))] * 2, strict=True):
                if line.startswith("M  CHG"):
                    charges[atom - 1] = value
                else:
                    unpaired += MDL_UNPAIRED[value]
    for k, line in enumerate(lines[4 : 4 + count] if not properties else ()):
        code = int(line[36:39].strip() or 0)
        charges[k], unpaired = MDL_CHARGES.get(code, 0), unpaired + (code == 4)
    if charges.any():
        atoms.set_initial_charges(charges)
    if unpaired:
        atoms.info["unpaired_electrons"] = unpaired
    return [(int(line[:3]) - 1, int(line[3:6]) - 1) for line in lines[4 + count : 4 + count + bonds]]
