"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

Of all that the tests need but torch and torchvision: their wheels on PyPI bring 3 GB of CUDA.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("eval", "hed", "interop", "s3", "test")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = project["dependencies"] + [
    requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]
]
bounds = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)", "\n".join(requirements), re.MULTILINE))
sys.stdout.writelines(
    f"{name}=={version}\n"
    for name, version in bounds.items()
    if name not in {"torch", "torchvision"}
)
