"""What a method stands for in PySCF: its functional, dispersion, core potentials. What would not be computed as its name says is refused."""

import contextlib
import difflib
import functools
import io
import re
import warnings

import numpy as np

from mfmd.labelling.schema import CORRELATED, XTB, LabelError


def definition(method, symbols):
    """All that decides a method's numbers on structures of some elements, for JSON. LabelError : no such method, or not for these elements."""
    if method.method in XTB:
        return {"method": method.method}
    out = {"method": method.method, "basis": method.basis, "cartesian": method.cartesian, "density_fitting": method.density_fitting}
    cores = {symbol: potential(method.basis, symbol) for symbol in sorted(symbols)}
    out["ecp"] = {symbol: found[0] if found else None for symbol, found in cores.items()}  # core electrons that it stands for
    if method.method in CORRELATED:
        out["frozen_core"] = method.frozen_core
    elif method.method != "hf":
        out |= functional(method.method)[1] | {"grid": method.grid}
    return out


FITTED = re.compile(r"_(D\d?|3C)$|VDW|DLDF|RVV10")  # what libxc calls functionals that were made for a dispersion PySCF has not
INSTEAD = "take one whose dispersion is computed, such as wb97x-v, wb97m-v or, with pyscf-dispersion, b3lyp-d3bj"


@functools.cache
def functional(name):
    """(its name for PySCF, {"xc": {libxc's name: share}, "exact_exchange": [hybrid, long-range, omega], "nonlocal", "dispersion"}).

    Raises
    ------
    LabelError : PySCF does not have it, or has only a part of what its name says
    """
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    given, name = name, name.replace("-d3(bj)", "-d3bj").replace("-d3(0)", "-d3zero")
    if name in ("lda", "lsda"):  # PySCF's own lda is exchange alone
        name = "slater,vwn"
    if re.search(r"3c$", name):
        raise LabelError(f"{given} is a recipe with basis and corrections of its own, which is not computed; {INSTEAD}")
    if re.match(r"b97-?d[34]|wb97x[-_]?d\d?$", name):
        raise LabelError(f"{given} is not in PySCF as what is published under this name; {INSTEAD}")
    if re.search(r"-d3(2b|atm)?$", name):
        raise LabelError(f"{given} leaves its damping open; write {given}bj or {given}zero")
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            parsed = dispersion.parse_dft(name)[0]
            exchange, terms = libxc.parse_xc(parsed)
            nonlocal_ = bool(libxc.is_nlc(parsed)) and dispersion.parse_dft(name)[1] != 0
            parameters, version, three_body = dispersion.parse_disp(name)
    except Exception as error:  # whatever a parser raises at a name it does not know
        known = [key.lower() for key in (*libxc.XC_ALIAS, *libxc.XC_CODES)] + ["hf", *CORRELATED, *(xtb.lower() for xtb in XTB)]
        close = difflib.get_close_matches(given, known, 3)
        raise LabelError(
            f"{given} is no method that there is: {', '.join((*XTB, 'hf', *CORRELATED))}, or a functional by its name in PySCF"
            f"{'; did you mean ' + ' or '.join(close) + '?' if close else ''} ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None
    if words.getvalue():
        raise LabelError(f"{given} stands for several functionals ({' '.join(words.getvalue().split())})")
    names = {number: key for key, number in reversed(libxc.XC_CODES.items()) if re.match(r"(HYB_)?(LDA|GGA|MGGA)_", key)}
    xc = {names.get(int(number), str(int(number))): float(share) for number, share in terms}
    if terms := _unmeant(parsed):
        parts = [f"{share:+g} {key}" for key, share in (*xc.items(), ("HF", exchange[0])) if share]
        plain = name.replace("-", "_")
        close = f"did you mean {plain}? Else " if plain.upper() in {*libxc.XC_ALIAS, *libxc.XC_CODES} else ""
        raise LabelError(
            f"{given}: to PySCF a minus sign subtracts and a number is one of libxc's functionals, here {' '.join(parts)}; {close}"
            f"where that is meant, write {' and '.join(terms)}"
        )
    if unmet := [key for key in xc if FITTED.search(key)]:
        raise LabelError(
            f"{given} would be computed without the dispersion it was made for (PySCF has {', '.join(unmet)} alone); {INSTEAD}"
        )
    kinds = {kind for key in xc for kind in re.findall(r"_(X|C|XC|K)(?:_|$)", key)[:1]}
    if "K" in kinds:
        raise LabelError(f"{given} is a functional of the kinetic energy")
    if "," not in name and not any(exchange) and kinds in ({"X"}, {"C"}):
        what, meant = ("exchange", f"'{given},'") if kinds == {"X"} else ("correlation", f"',{given}'")
        raise LabelError(f"{given} is {what} alone ({', '.join(xc)}); write both, such as b88,lyp, or {meant} where it is meant")
    if version is not None:
        if version not in dispersion.DISP_VERSIONS:
            raise LabelError(f"{given}: PySCF has no dispersion {version}; there are {', '.join(dispersion.DISP_VERSIONS)}")
        if dispersion.dispersion is None:
            raise LabelError(f"{given} needs a package for its dispersion; pip install pyscf-dispersion")
    return name, {
        "xc": xc,
        "exact_exchange": [float(x) for x in exchange],  # beside what libxc has within a hybrid
        "nonlocal": nonlocal_,
        "dispersion": version and f"{version} of {parameters}{' with three-body terms' if three_body else ''}",
    }


def _unmeant(name):
    """What PySCF takes from a name as subtracted, or as a functional by its number, without a factor that says it is meant; with that factor."""
    from pyscf.dft import libxc

    name = re.sub(r"\(.*?\)", "", libxc.format_xc_code(name))
    for dashed, plain in libxc._NAME_WITH_DASH.items():  # names of their own, such as M06-2X
        name = name.replace(dashed, plain)
    terms = [term.lower() for term in re.findall(r"[-+]?[^-+,]+", name) if "*" not in term]
    return [f"{'-' if term[0] == '-' else ''}1*{term.strip('+-')}" for term in terms if term[0] == "-" or term.strip("+-").isdigit()]


# Whose potentials PySCF keeps elsewhere than with the basis functions, names without - and _.
ELSEWHERE = (
    (r"aug(ccpv.zpp)", r"\1"),
    (r"ccpwcv(.)zpp", r"ccpv\1zpp"),
    (r"(def2)m(tzvp)p?", r"\1\2"),
    (r"(bfd).+", r"\1"),
    (r"(ccecp(?:he|reg|28|36)?)(?:aug)?ccpv.z", r"\1"),
)
# Of the energy that a lone electron has in a core shell, how much a basis must give it if it is to describe the core: in 1s up to krypton, in 2p beyond, where
# functions contracted for relativistic cores have less in 1s. Over PySCF's bases and elements those for all electrons have 0.96 and more, the others 0.77 and less.
CORE = 0.9


@functools.cache
def potential(basis, symbol):
    """The effective core potential that PySCF has for an element with a basis, (core electrons, …); None where the basis describes all electrons.

    Raises
    ------
    LabelError : the basis has no functions for the element, or none for its core and there is no potential
    """
    from pyscf import gto
    from pyscf.data.elements import charge
    from pyscf.lib.exceptions import BasisNotFoundError

    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another package, which may have a basis that PySCF has not
            shells = gto.basis.load(basis, symbol)
    except (BasisNotFoundError, KeyError, RuntimeError, OSError, AttributeError, AssertionError) as error:
        raise LabelError(
            f"the basis {basis} is not in PySCF for {symbol} ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None
    if not shells:
        raise LabelError(f"the basis {basis} has no functions for {symbol}")
    name = re.sub("[-_ ]", "", basis.lower())
    for family, other in ELSEWHERE:
        if re.fullmatch(family, name):
            name = re.sub(family, other, name)
    file = gto.basis.ALIAS.get(name)
    if isinstance(file, str) and file.endswith(".dat") and (found := gto.basis.load_ecp(name, symbol)):
        return found
    z = charge(symbol)
    if "gth" in name or (z > 2 and _core(shells, symbol, z, l=int(z > 36)) < CORE):
        raise LabelError(
            f"the basis {basis} has functions for the valence electrons of {symbol} alone, and PySCF has no effective core potential for it"
        )
    return None


def _core(shells, symbol, z, l):
    """The part of the energy of one electron in the shell 1s or 2p (l = 0 or 1) of a bare nucleus that a basis gives."""
    from pyscf import gto

    own = [shell for shell in shells if shell[0] == l]
    if not own:
        return 0.0
    atom = gto.M(atom=[(symbol, (0, 0, 0))], basis={symbol: own}, spin=z % 2, verbose=0)
    overlap, vectors = np.linalg.eigh(atom.intor("int1e_ovlp"))
    vectors = vectors[:, overlap > 1e-8] / np.sqrt(overlap[overlap > 1e-8])
    energy = np.linalg.eigvalsh(vectors.T @ (atom.intor("int1e_kin") + atom.intor("int1e_nuc")) @ vectors)[0]
    return energy / (-0.5 * (z / (l + 1)) ** 2)
