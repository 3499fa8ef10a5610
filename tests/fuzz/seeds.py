"""What the targets in C++ begin with: small models of every kind, in the pieces that the targets put together, and right inputs of each target.

python tests/fuzz/seeds.py build/fuzz
"""

import base64
import io
import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import conftest
import test_domain
import test_kinds

from mfmd.training import export

KINDS = ("small", "layers", "published", "charged", "linear", "ensemble")  # as target.hpp has them


def contents():
    """{name: bytes of mfmd.safetensors}"""
    small = conftest.random_model(channels=16, layers=0, cutoff=3.0, rank=0, radial_functions=4)
    charged = conftest.random_model(4, channels=16, layers=0, cutoff=3.0, radial_functions=4)
    charged.backbone.add_states()
    torch.nn.init.normal_(charged.backbone.embedding.states, std=0.3)
    models = {
        "small": small,
        "layers": conftest.random_model(channels=16, layers=2, cutoff=3.5, rank=1, radial_functions=4),
        "published": conftest.all_at_once(),
        "charged": charged,
        "linear": test_kinds.TestLinear().make(0),
        "ensemble": test_kinds.TestEnsemble().make(0),
    }
    bounds = test_domain.found(small, [test_domain.record(a) for a in test_domain.frames()], conftest.ELEMENTS)
    for name, model in models.items():
        yield (
            name,
            export.serialize(
                model.eval().float(),  # half as many bytes
                {level: list(conftest.ELEMENTS) for level in model.heads},
                {},
                domain=bounds if name == "small" else None,
                states=dict.fromkeys(model.heads, conftest.SEEN) if name == "charged" else None,
            ),
        )


def pieces(content):
    """The model's own header, the rest of the safetensors header without the brace that opens it, and the numbers."""
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    own = header.pop("__metadata__")["mfmd"]
    return own.encode(), json.dumps(header, separators=(",", ":"))[1:].encode(), content[8 + size :]


def archives(content):
    """Archives as there may be: stored, compressed, with other entries, ZIP64, with a comment, none of ours."""
    for name, method, comment in (
        ("model/extra/mfmd.safetensors", zipfile.ZIP_STORED, b""),
        ("model/extra/mfmd.safetensors", zipfile.ZIP_DEFLATED, b""),
        ("model/extra/mfmd.safetensors", zipfile.ZIP_STORED, b"a comment"),
        ("model/data.pkl", zipfile.ZIP_STORED, b""),
    ):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.comment = comment
            archive.writestr("model/version", "3\n")
            with archive.open(name, "w", force_zip64=bool(comment)) as entry:
                entry.write(content)
        yield file.getvalue()


def tensors():
    from safetensors.numpy import save

    yield save({"a": np.arange(6.0).reshape(2, 3), "b": np.float32([1.5]), "c": np.zeros(())}, {"mfmd": '{"format": 1}'})
    yield save({"a": np.int64([1])}, {})


def forces():
    """Nodes of the native force, as target openmm_force reads them."""
    head = "forceGroup 0\nname MfmdForce\nperiodic 0\nsingle {single}\nthreads 1\natoms 0 1 2 3 \nnumbers 8 1 1 6 \nbonds 0 1 0 2 \n"
    terms = "+Terms\n+Term\nhead 0\nweight 1\nparameter {parameter}\n-\n-\n+Parameters\n+Parameter\nname scale\ndefault 0.5\n-\n-\n+Model\nsafetensors @{model}\n-\n"
    for k, model in enumerate(KINDS):
        text = "version {version}\n" + head + ("states 0 0 1 0 \nfragment 0 0 0 1 \nallowUnseenState 1\n" if k % 2 else "") + terms
        yield text.format(version=1 + k % 2, single=k % 2, parameter="scale" if k % 2 else "", model=model).encode()


def lines():
    """Of LAMMPS; @ is a model."""
    for style in (
        "",
        "head low precision double",
        "threads 2 charge 1 multiplicity 2",
        "allow_unseen_state yes",
        "device cuda:0",
        "head none",
    ):
        yield f"{style}\n* * @ O H".encode()
    yield b"\n1 2 @ O"
    yield b"\n* * nowhere.pt NULL H"


def structures():
    """Of target structure: molecules and cells, in its order of bytes."""
    for seed, cell in ((1, (0, 0, 0)), (2, (12000, 12000, 12000)), (3, (9000, 16000, 0))):
        for model in range(len(KINDS)):
            rng = np.random.default_rng(seed)
            atoms, host = 4, seed == 1 and model % 2
            head = bytes([model, model % 2, 0, *([1] * 7), 0, 0, 0, 0, 0, 0, atoms])
            box = np.diag(cell).astype(np.int16).tobytes() + bytes([c > 0 for c in cell])
            places = np.arange(3 * atoms).reshape(atoms, 3) % 4 * 4000 + rng.integers(-700, 700, (atoms, 3))
            yield (
                head
                + box
                + places.astype(np.int16).tobytes()
                + rng.integers(0, 4, atoms, np.uint8).tobytes()
                + bytes([0, 0, host, 3, *range(20)])
            )


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    begins = {
        "archive": archives(b"content" * 9),
        "tensors": tensors(),
        "openmm_force": forces(),
        "lammps_input": lines(),
        "structure": structures(),
    }
    begins["header"] = []
    for k, (name, content) in enumerate(contents()):
        own, header, numbers = pieces(content)
        for suffix, piece in {"safetensors": content, "tensors": header, "numbers": numbers, "base64": base64.b64encode(content)}.items():
            (folder / f"{name}.{suffix}").write_bytes(piece)
        export.write_weights(folder / f"{name}.pt", content)
        begins["header"].append(bytes([k, 0]) + own)
    for target, inputs in begins.items():
        (folder / "seeds" / target).mkdir(parents=True, exist_ok=True)
        for k, content in enumerate(inputs):
            (folder / "seeds" / target / str(k)).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
