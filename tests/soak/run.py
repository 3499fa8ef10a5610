"""Goes on with the long tests for so long, the one first that is farthest from what is asked, and adds what it finds to figures.json.

python tests/soak/run.py build/soak --minutes 20 [--only relations hosts kills dynamics] [--jobs 2]
python tests/soak/run.py build/soak --table     what figures.json says

Models, inputs, and whatever is under way stay in build/soak, so that a later part goes on from them. What fails is kept in build/soak/found, and
the command ends with 1; counts of that kind then begin at zero.
"""

import argparse
import collections
import concurrent.futures
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
FIGURES = HERE / "figures.json"
ASKED = {"relations": 100_000, "hosts": 1000, "kills": 700}
CHUNK = 200  # cases between looks at the clock
