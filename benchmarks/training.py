"""Training beside torchmd-net: the same backbone, data (gfn2 energies and forces of molecules) and wall-clock budget.

    python benchmarks/training.py --minutes 4

torchmd-net trains with its own LightningModule (LNNP) and its own loss, schedule and model; mfmd with mfmd-train's
defaults. Prints the time of a training step of both on the same batches, then the MAE on the same test frames.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from mfmd.structures import reading
from mfmd.training import batches, energies, loop, plan, stages
from mfmd.training.run import train

warnings.filterwarnings("ignore")

CONFIG = """
out: {out}/run
data: {{train: examples/data/train.xyz, val: examples/data/val.xyz, test: examples/data/test.xyz, atoms: examples/data/atoms.json}}
levels: {{gfn2: {{stress_weight: 0}}}}
backbone: {{channels: {channels}, layers: {layers}}}
train: {{monitor: gfn2.forces, batch_size: {batch}}}
"""


def records(structures, e0):
    """For torchmd-net: energies without the fitted E0, in eV."""
    out = []
    for s in structures:
        label = s.labels["gfn2"]
        y = label.energy - sum(e0[int(z)] for z in s.numbers)
        out.append(
            Data(
                z=torch.tensor(s.numbers),
                pos=torch.tensor(s.positions, dtype=torch.float32),
                y=torch.tensor([[y]], dtype=torch.float32),
                neg_dy=torch.tensor(label.forces, dtype=torch.float32),
            )
        )
    return out


def peer_module(args):
    from torchmdnet.module import LNNP

    hparams = dict(
        model="tensornet", embedding_dimension=args.channels, num_layers=args.layers, num_rbf=32, rbf_type="expnorm", trainable_rbf=False,
        activation="silu", cutoff_lower=0.0, cutoff_upper=5.0, max_z=20, max_num_neighbors=64, equivariance_invariance_group="O(3)",
        output_model="Scalar", derivative=True, precision=32, prior_model=None, prior_args=None, reduce_op="add", check_errors=True,
        static_shapes=False, vector_cutoff=False, atom_filter=-1, remove_ref_energy=False, load_model=None, output_mlp_num_layers=0,
        lr=args.peer_lr, lr_factor=0.7, lr_patience=3, lr_min=1e-6, lr_warmup_steps=200, lr_metric="val", weight_decay=0.0,
        train_loss="l1_loss", train_loss_arg=None, y_weight=0.1, neg_dy_weight=1.0, ema_alpha_y=1.0, ema_alpha_neg_dy=1.0,
        box_vecs=None, spin=False, charge=False, dtype=32, test_interval=-1, num_epochs=1000,
    )  # fmt: skip
    return LNNP(hparams)


class Record(lightning.Callback):
    """Keeps the best weights by validation force error, as `mfmd-train` does."""

    def __init__(self, records):
        self.loader, self.best, self.state = DataLoader(records, 64), float("inf"), None

    def on_train_epoch_end(self, trainer, module):
        mae = peer_mae(module, self.loader)[1]
        if mae < self.best:
            self.best, self.state = mae, copy.deepcopy(module.state_dict())


def peer_mae(module, loader):
    module.eval()
    energy, forces = [], []
    with torch.enable_grad():
        for batch in loader:
            y, f = module.model(batch.z, batch.pos, batch.batch)
            energy.append((y - batch.y).detach().abs().flatten())
            forces.append((f - batch.neg_dy).detach().abs().flatten())
    module.train()
    return torch.cat(energy).mean().item(), torch.cat(forces).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each; 0: a step alone")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peer-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not Path("examples/data/train.xyz").exists():
        sys.exit("error: run this from the top of the repository")
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "config.yaml"
        path.write_text(CONFIG.format(out=out, channels=args.channels, layers=args.layers, batch=args.batch))
        config = plan.load(path)
        splits = {k: [s for s in v if not s.pbc.any()] for k, v in reading.read(config.data, config.levels).items()}
        atoms = energies.read_atoms(config.data.atoms, config.levels)["gfn2"]
        totals = [s.labels["gfn2"].energy for s in splits["train"]]
        e0, _, _ = energies.fit_reference_energies(splits["train"], totals, reading.subset_elements(splits["train"], "gfn2"), "gfn2", atoms)

        # One step, on the same batches, interleaved.
        torch.manual_seed(args.seed)
        module = peer_module(args)
        ours = loop.Training(stages.begin(config, config.stages[0], None, splits["train"]).train(), config.stages[0])
        ours.log = lambda *_, **__: None
        order = np.random.default_rng(args.seed).permutation(len(splits["train"]))
        times = {"mfmd": [], "torchmd-net": []}
        for k in range(20):
            chosen = [splits["train"][n] for n in order[k * 64 : (k + 1) * 64]]
            batch = batches.collate(chosen, config.levels, 5.0, torch.float32)
            start = time.perf_counter()
            ours.training_step(batch, 0).backward()
            middle = time.perf_counter()
            y, f = module.model(batch.numbers, batch.positions, batch.structure)
            ((y**2).mean() + ((f - batch.forces["gfn2"]) ** 2).mean()).backward()
            times["mfmd"].append(middle - start)
            times["torchmd-net"].append(time.perf_counter() - middle)
        step = {k: statistics.median(v[5:]) for k, v in times.items()}
        print(f"one training step, 64 molecules: mfmd {1e3 * step['mfmd']:.0f} ms, torchmd-net {1e3 * step['torchmd-net']:.0f} ms")
        if args.minutes == 0:
            return

        # The budget each.
        lightning.seed_everything(args.seed, verbose=False)
        keep = Record(records(splits["val"], e0))
        trainer = lightning.Trainer(
            max_time={"minutes": args.minutes}, max_epochs=-1, gradient_clip_val=10.0, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, callbacks=[keep], inference_mode=False,
        )  # fmt: skip
        module = peer_module(args)
        trainer.fit(
            module,
            DataLoader(records(splits["train"], e0), args.batch, shuffle=True),
            [DataLoader(records(splits["val"], e0), 64)],
        )
        module.load_state_dict(keep.state)
        energy, forces = peer_mae(module, DataLoader(records(splits["test"], e0), 64))
        print(
            f"torchmd-net, {args.minutes:g} min, {trainer.current_epoch} epochs: test MAE energy {1e3 * energy:.1f} meV, forces {1e3 * forces:.1f} meV/Å"
        )

        seconds = []
        for epochs in (1, 3):
            start = time.perf_counter()
            train(plan.load(path, [f"out={out}/probe-{epochs}", f"train.epochs={epochs}"]))
            seconds.append(time.perf_counter() - start)
        epoch = (seconds[1] - seconds[0]) / 2
        epochs = 1 + int((args.minutes * 60 - seconds[0]) / epoch)
        start = time.perf_counter()
        tables = train(plan.load(path, [f"train.epochs={epochs}", f"seed={args.seed}"]))
        used = (time.perf_counter() - start) / 60
        row = tables["test"]["gfn2", "energy"], tables["test"]["gfn2", "forces"]
        print(
            f"mfmd, {used:.1f} min, {epochs} epochs: test MAE energy {1e3 * row[0]['mae']:.1f} meV, forces {1e3 * row[1]['mae']:.1f} meV/Å"
        )


if __name__ == "__main__":
    main()
