"""Where adding nodes stops to help: steps of water in LAMMPS on 1 to 1000 nodes, from what benchmarks/lammps.py measured on two cores.

python benchmarks/scaling.py [--atom 32.1] [--ghost 1.4] [--channels 64] [--layers 1]

A model, not a measurement: cubes of water, one rank a core, no imbalance; a rank computes its atoms and handles its ghosts, and the ghosts of a
node's own cube come over the network.
"""

import argparse

CORES = 64  # of a node
BANDWIDTH, LATENCY = 25e9, 2e-6  # bytes a second and node, seconds a message: one port of HDR200 InfiniBand or Slingshot-11
DENSITY, REACH = 0.1, 6.0  # atoms an Å³; Å, cutoff and skin
MESSAGES = 6  # of LAMMPS in one exchange, one a face


def ghosts(atoms):
    """Of a cube with so many atoms."""
    side = (atoms / DENSITY) ** (1 / 3)
    return DENSITY * ((side + 2 * REACH) ** 3 - side**3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atom", type=float, default=32.1, help="µs of a core for an atom")
    parser.add_argument("--ghost", type=float, default=1.4, help="µs of a core for a ghost")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    fills = 2 * arguments.layers + 1
    width = 9 * 4 * arguments.channels
    print(f"{fills} exchanges of {width} bytes a ghost and step\n")
    print(
        "| atoms | nodes | atoms a core | network, of the step | steps/s | ns/day at 0.5 fs | efficiency |\n|---|---|---|---|---|---|---|"
    )
    for atoms in (100_000, 1_000_000, 10_000_000):
        for nodes in (1, 10, 100, 1000):
            own = atoms / (nodes * CORES)
            compute = 1e-6 * (own * arguments.atom + ghosts(own) * arguments.ghost)
            network = fills * (MESSAGES * LATENCY + ghosts(atoms / nodes) * width / BANDWIDTH) if nodes > 1 else 0.0
            seconds = compute + network
            print(
                f"| {atoms:,} | {nodes} | {own:.0f} | {100 * network / seconds:.0f} % | {1 / seconds:.1f} | {0.0432 / seconds:.2f} | "
                f"{100e-6 * atoms * arguments.atom / (nodes * CORES * seconds):.0f} % |"
            )


if __name__ == "__main__":
    main()
