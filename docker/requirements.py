"""Print what pyproject.toml requires: build, dependencies, and extras or dependency groups by name.

python docker/requirements.py build runtime > requirements.txt
"""

import sys
import tomllib
from pathlib import Path

content = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
lists = {
    "build": content["build-system"]["requires"],
    "dependencies": content["project"]["dependencies"],
    **content["project"]["optional-dependencies"],
    **content["dependency-groups"],
}
sys.stdout.writelines(f"{requirement}\n" for name in sys.argv[1:] for requirement in lists[name])
