"""Print the dependencies of mfmd and of the extras named, one a line, as pyproject.toml has them."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
print("\n".join(line.replace(" ", "") for line in wanted))
