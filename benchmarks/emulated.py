"""Runs a benchmark of CUDA with the emulated engine (`make build/emulated/done`) in place of a card, which shows that it runs, and no speed:

python benchmarks/emulated.py build/emulated benchmarks/inference.py --device cuda --channels 16 --layers 1 --systems ethanol --seconds 0
"""

import runpy
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent / "tests")]
import conftest  # noqa: E402

folder, *sys.argv = sys.argv[1:]
conftest.use_engine(folder)
import device  # noqa: E402

device.PLACE = "cpu"
runpy.run_path(sys.argv[0], run_name="__main__")
