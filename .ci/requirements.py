"""Print the dependencies of mfmd and of the extras and groups named, one a line, as pyproject.toml has them."""

import sys
import tomllib
from pathlib import Path

content = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
project, named = content["project"], content["project"]["optional-dependencies"] | content["dependency-groups"]
wanted = project["dependencies"] + [line for name in sys.argv[1:] for line in named[name]]
print("\n".join(line.replace(" ", "") for line in wanted))
