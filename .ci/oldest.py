"""Print the oldest supported version of every dependency as pip constraints, read from pyproject.toml."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
for requirement in [*project["dependencies"], *extras]:
    if found := re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement):
        print("==".join(found.groups()))
