"""PDB and mmCIF files as openmm.app.Topology, with every atom they hold, and for each the element that the file means.

OpenMM reads the files. What it would drop or guess is settled before: of several atoms of one name in a residue it keeps one (ASE and Open Babel
write such files), and an atom without element becomes what its name begins with, so that NI is nitrogen.
"""

import dataclasses
import io
import warnings
from collections import Counter

import numpy as np
import openmm.app
import openmm.unit as unit
from ase.data import atomic_numbers
from ase.io.formats import open_with_compression
from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader

from mfmd import Note
from mfmd.engine import InputError

STANDARD = set(
    [
        "ALA",
        "ARG",
        "ASN",
        "ASP",
        "CYS",
        "GLN",
        "GLU",
        "GLY",
        "HIS",
        "ILE",
        "LEU",
        "LYS",
        "MET",
        "PHE",
        "PRO",
        "SER",
        "THR",
        "TRP",
        "TYR",
        "VAL",
        "A",
        "C",
        "G",
        "I",
        "U",
        "DA",
        "DC",
        "DG",
        "DI",
        "DT",
        "HOH",
    ]
)  # residues of elements of one letter, whatever their atoms' names begin with
DIVIDING = ("MODEL", "ENDMDL", "END")  # records between models
TOLD = "REMARK  99 MFMD "  # begins a record of what mfmd's run had and the file cannot say
STATE = "REMARK  99 STATE "  # and one of charge and multiplicity: words and numbers in turn
HEAVIEST = 103  # element that a name may stand for


@dataclasses.dataclass
class _Line:
    """One ATOM or HETATM record."""

    at: int  # in the file
    name: str  # four columns, whose second is where a symbol of one letter belongs
    alternate: str
    residue: str
    run: int  # atoms that follow one another in the same residue have the same
    model: int
    serial: str
    symbol: str


def read_pdb(path):
    """(openmm.app.Topology, positions (atoms, 3) Å) of a PDB file: of its last model, and of atoms with several locations the first.

    Models are divided by MODEL, ENDMDL or END; names, elements and bonds are the first's, positions and box the last's.

    Raises
    ------
    InputError : it cannot be read, an element that neither its columns nor the atom's name settles, MODELs of different atoms, a space group
        other than P 1, CONECT records where serial numbers repeat
    """
    try:
        with open_with_compression(str(path), "rt") as file:
            lines = [line.rstrip("\n") for line in file]
        atoms = _records(lines)
        for line in lines:
            _check_space_group(line[55:66] if line.startswith("CRYST1") else "")
        if (models := len({a.model for a in atoms})) > 1:
            lines = _last_of_models(lines, atoms)
            atoms = _records(lines)
        _check_serials(lines, atoms)
        _name_elements(path, lines, atoms)
        _tell_apart(lines, atoms)
        pdb = openmm.app.PDBFile(io.StringIO("\n".join(lines) + "\n"))
    except InputError:
        raise
    except Exception as error:  # the reader raises whatever it meets
        raise InputError(f"{path}: not a readable PDB file ({error})") from None
    if models > 1:
        warnings.warn(f"{path}: the last of {models} models is taken", Note, stacklevel=2)
    if several := sum(a.alternate != " " for a in atoms) - len({(a.run, a.name) for a in atoms if a.alternate != " "}):
        warnings.warn(f"{path}: {several} alternate locations are not taken, but the first of each atom", Note, stacklevel=2)
    for line in lines:
        if line.startswith(TOLD):
            warnings.warn(
                f"{path}: the run that wrote it had {line.removeprefix(TOLD).strip()}, and a PDB file does not say which; "
                "here there are none (--continue-from keeps them)",
                Note,
                stacklevel=2,
            )
    return pdb.topology, _last(path, pdb)


def state_said(path):
    """{"charge": …, "multiplicity": …} of a PDB file that a run of mfmd has written for atoms that are not neutral and closed-shell; else {}."""
    with open_with_compression(str(path), "rt") as file:
        words = next((line.removeprefix(STATE).split() for line in file if line.startswith(STATE)), [])
    try:
        said = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        if not said.keys() <= {"charge", "multiplicity"} or 2 * len(said) != len(words):
            raise ValueError
        return said
    except ValueError:
        raise InputError(
            f"{path}: the state of its atoms, {STATE}{' '.join(words)}, is not that of a run of mfmd; remove the line"
        ) from None


def is_mmcif(path):
    """Whether a CIF file is of a biomolecular kind, and not of a crystal."""
    with open_with_compression(str(path), "rt") as file:
        return any("_atom_site." in line for line in file)


def read_mmcif(path):
    """The same of a PDBx/mmCIF file."""
    try:
        with open_with_compression(str(path), "rt") as file:
            content, blocks = file.read(), []
        PdbxReader(io.StringIO(content)).read(blocks)
        for category, key in (("symmetry", "space_group_name_H-M"), ("space_group", "name_H-M_alt")):
            if found := blocks[0].getObj(category):
                _check_space_group(dict(zip(found.getAttributeList(), found.getRow(0), strict=True)).get(key, ""))
        pdb = openmm.app.PDBxFile(io.StringIO(content))
        table = blocks[0].getObj("atom_site")
        rows = [dict(zip(table.getAttributeList(), row, strict=True)) for row in table.getRowList()]
    except Exception as error:
        raise InputError(f"{path}: not a readable mmCIF file ({error})") from None
    model = rows[0].get("pdbx_PDB_model_num")
    rows = [row for row in rows if row.get("pdbx_PDB_model_num") == model]
    if several := len(rows) - pdb.topology.getNumAtoms():
        if all(row.get("label_alt_id", ".") in ".?" for row in rows):
            raise InputError(f"{path}: OpenMM tells {several} of its {len(rows)} atoms not from others; give them names of their own")
        warnings.warn(f"{path}: {several} alternate locations are not taken, but the first of each atom", Note, stacklevel=2)
    said = {row.get("id"): row for row in rows}
    for atom in pdb.topology.atoms():
        if (row := said.get(atom.id)) is None:
            raise InputError(f"{path}: atom {atom.name} has no _atom_site.id of its own")
        if atom.element is None:
            raise InputError(f"{path}: atom {atom.id} ({atom.name}) has no element; name it under _atom_site.type_symbol")
        if (charge := row.get("pdbx_formal_charge", "?")) not in ".?":
            try:
                atom.formalCharge = round(float(charge))
            except (ValueError, OverflowError):
                raise InputError(f"{path}: atom {atom.id} ({atom.name}) has the formal charge {charge!r}, which is no number") from None
    return pdb.topology, _last(path, pdb)


def element_named(name, residue):
    """The symbols that an atom's name may stand for, one or two: those of its first letters, unless its residue settles them."""
    letters = "".join(c if c.isalpha() else " " for c in name.lstrip("0123456789 ")).partition(" ")[0]
    found = [s for s in (letters[:2].capitalize(), letters[:1].upper()) if 0 < atomic_numbers.get(s, 0) <= HEAVIEST]
    if len(set(found)) < 2:
        return found[:1]
    if residue in STANDARD:
        return found[1:]
    if residue.rstrip("0123456789+-").upper() == letters.upper():  # an ion
        return found[:1]
    return found


def write(file, topology, positions):
    """As openmm.app.PDBFile.writeFile, with all bonds: of an atom that has more than four, OpenMM 8.6 leaves out every fourth
    (findings/openmm_pdb_conect_loses_bonds.sh)."""
    text = io.StringIO()
    openmm.app.PDBFile.writeFile(topology, positions, text)
    *lines, end = text.getvalue().splitlines()
    serials = [line[6:11] for line in lines if line.startswith(("ATOM  ", "HETATM"))]
    written = {frozenset((line[6:11], line[k : k + 5])) for line in lines if line.startswith("CONECT") for k in range(11, len(line), 5)}
    many = {index for index, count in Counter(atom.index for bond in topology.bonds() for atom in bond).items() if count > 4}
    for a, b in topology.bonds():
        if not many.isdisjoint((a.index, b.index)) and frozenset((serials[a.index], serials[b.index])) not in written:
            lines.append(f"CONECT{serials[a.index]}{serials[b.index]}")
    file.write("\n".join([*lines, end]) + "\n")


def names(symbol):
    """How many atoms of an element a residue has names for."""
    digits = 4 - len(symbol)
    return 10**digits - 1 + 26 * 36 ** (digits - 1)


def label(symbol, n):
    """A name of at most four characters for the n-th atom of an element in a residue, from 1; InputError where there are too many."""
    digits = 4 - len(symbol)
    if n > names(symbol):
        raise InputError(f"a residue has more atoms of {symbol} than there are names for; divide it into several")
    if n >= 10**digits:
        return symbol + np.base_repr(n + 10 * 36 ** (digits - 1) - 10**digits, 36)  # A00 after 999
    return f"{symbol}{n}"


def _last(path, pdb):
    """Positions (atoms, 3) Å of the last model; a cell of 1 × 1 × 1 Å, which means that there is none, goes."""
    box = pdb.topology.getPeriodicBoxVectors()
    if box is not None and max(abs(v[k]._value) for k, v in enumerate(box)) < 0.11:
        pdb.topology.setPeriodicBoxVectors(None)
    if (frames := pdb.getNumFrames()) > 1:
        warnings.warn(f"{path}: the last of {frames} models is taken", Note, stacklevel=3)
    positions = np.array(pdb.getPositions(asNumpy=True, frame=frames - 1).value_in_unit(unit.angstrom))
    if len(positions) != pdb.topology.getNumAtoms():
        raise InputError(f"{path}: its models hold different atoms; keep one")
    return positions


def _records(lines):
    """The _Lines of a file."""
    out, run, model, before = [], 0, 0, None
    for k, line in enumerate(lines):
        if (kind := line[:6].strip()) in (*DIVIDING, "TER"):
            model, before = model + (kind in DIVIDING), None
        if not line.startswith(("ATOM  ", "HETATM")):
            continue
        run, before = run + (line[17:27] != before), line[17:27]
        symbol = line[76:78].strip().capitalize()
        known = (symbol in atomic_numbers and symbol != "X") or symbol in ("D", "Ep")
        out.append(_Line(k, line[12:16], line[16:17], line[17:21].strip(), run, model, line[6:11], symbol if known else ""))
    if not out:
        raise ValueError("it has no atoms")
    return out


def _last_of_models(lines, atoms):
    """The lines of a file with one model: the first's, with the positions of the last, and the last box of the file."""
    models = sorted({a.model for a in atoms})
    first, last = ([a for a in atoms if a.model == m] for m in (models[0], models[-1]))
    if [(a.name, a.residue) for a in first] != [(a.name, a.residue) for a in last]:
        raise ValueError("its models (divided by MODEL, ENDMDL or END) hold different atoms; keep one")
    boxes = [line for line in lines if line.startswith("CRYST1")]
    connected = dict.fromkeys(line for line in lines if line.startswith("CONECT"))  # some write them after every model
    out, moved = boxes[-1:], {a.at: lines[b.at][30:54] for a, b in zip(first, last, strict=True)}
    for k, line in enumerate(lines):
        if k in moved:
            out.append(line[:30] + moved[k] + line[54:])
        elif (line.startswith("TER") and first[0].at < k < first[-1].at) or line.startswith(("REMARK", "SEQRES")):
            out.append(line)
    return [*out, *connected, "END"]


def _check_space_group(group):
    """That the atoms of the file are all there are in a cell: its group is P 1, or none is named."""
    if "".join(group.upper().split()) not in ("", "?", ".", "P1", "1", "P111", "NONE", "UNK"):
        raise ValueError(f"its space group is {group.strip()}, and the atoms are not repeated; write all atoms of the cell, and P 1")


def _check_serials(lines, atoms):
    """That bonds by serial number are those of the atoms they mean."""
    if any(line.startswith("CONECT") for line in lines) and len({a.serial for a in atoms}) < len(atoms):
        raise ValueError("it has CONECT records, and serial numbers that repeat; remove the records, and bonds are found by distance")


def _name_elements(path, lines, atoms):
    """Elements into the columns 77 and 78 where they are missing, from names that mean one alone."""
    missing = [a for a in atoms if not a.symbol]
    ruled = _names_stand_by_the_rule(atoms)
    for a in missing:
        found = element_named(a.name, a.residue)
        if not found:
            raise ValueError(f"atom {a.name.strip()} of {a.residue} has no element; write it into the columns 77 and 78")
        if len(found) == 2 and not (ruled and a.name[0] != " " and len(a.name.strip()) < 4):
            raise ValueError(
                f"atom {a.name.strip()} of {a.residue} has no element, and may be {found[0]} or {found[1]}; write it into the columns 77 and 78"
            )
        a.symbol = found[0]
    for a in atoms:
        line = f"{lines[a.at]:<80}"
        lines[a.at] = f"{line[:76]}{a.symbol.upper():>2}{line[78:]}"
    if missing:
        names = {}
        for a in missing:
            names.setdefault(a.symbol, {})[a.name.strip()] = None
        told = "; ".join(f"{symbol}: {', '.join(list(of)[:4])}{' …' if len(of) > 4 else ''}" for symbol, of in names.items())
        warnings.warn(f"{path}: elements are missing, and taken from the names of atoms ({told})", Note, stacklevel=3)


def _names_stand_by_the_rule(atoms):
    """Whether symbols of one letter are in the second column of names, and so one that begins in the first has two."""
    plain = [a.name for a in atoms if len(element_named(a.name, "")) == 1 and len(element_named(a.name, "")[0]) == 1]
    plain = [name for name in plain if len(name.strip()) < 4 and not name[0].isdigit()]
    return bool(plain) and all(name[0] == " " for name in plain)


def _tell_apart(lines, atoms):
    """New names for the atoms of residues in which names repeat."""
    often = Counter((a.run, a.name, a.alternate) for a in atoms)
    repeating, counts = {run for (run, _, _), n in often.items() if n > 1}, Counter()
    for a in atoms:
        if a.run in repeating:
            if a.alternate != " ":
                raise ValueError(f"names of {a.residue} repeat, and it has alternate locations; keep one")
            counts[a.run, a.symbol] += 1
            name = f"{label(a.symbol, counts[a.run, a.symbol]):<4}"
            lines[a.at] = lines[a.at][:12] + (name if name[3] != " " or len(a.symbol) > 1 else f" {name[:3]}") + lines[a.at][16:]
