# SPDX-License-Identifier: BSD-3-Clause
"""The software that the demo publishes: PYTHIA 8 and numpy from PyPI, laid out as experiments lay out /cvmfs.

    setup.sh                  what a job sources: PYTHONPATH and PYTHIA8DATA, relative to where it lies
    pythia8/VERSION/          one nested catalog per package and version
    numpy/VERSION/

Only binary wheels are taken, so that nothing is compiled.  No threads.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cernvm.kit.errors import Problem
from cernvm.kit.files import write_atomically

SETUP: Final = """\
# Source this with CVMFS_SOFTWARE set to the directory that holds it.
export PYTHONPATH="$CVMFS_SOFTWARE/pythia8/{pythia8}:$CVMFS_SOFTWARE/numpy/{numpy}"
export PYTHIA8DATA="$CVMFS_SOFTWARE/pythia8/{pythia8}/share/Pythia8/xmldoc"
export PYTHONDONTWRITEBYTECODE=1
"""

CONSTRAINTS: Final = Path(__file__).parents[1] / "packaging" / "constraints.txt"
_INSTALL_DEADLINE: Final = 600.0


@dataclass(frozen=True)
class Package:
    """A package of the repository: its directory there, and the name of its wheel."""

    directory: str
    wheel: str


PACKAGES: Final = (Package("pythia8", "pythia8mc"), Package("numpy", "numpy"))


def lay_out(tree: Path, *, python: str = sys.executable) -> bool:
    """Make the software tree at `tree` for the interpreter `python`, unless it is there already.

    Returns whether anything was done.  Raises Problem when a wheel cannot be had.
    """
    stamp = tree.with_name(tree.name + ".complete")
    wanted = "\n".join([python, SETUP, CONSTRAINTS.read_text(), *(p.wheel for p in PACKAGES)])
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    shutil.rmtree(tree, ignore_errors=True)
    stamp.unlink(missing_ok=True)
    versions = {package.directory: _install(tree, package, python) for package in PACKAGES}
    (tree / "setup.sh").write_text(SETUP.format(**versions))
    write_atomically(stamp, wanted.encode())
    return True


def _install(tree: Path, package: Package, python: str) -> str:
    """Unpack the binary wheel of `package`, in the version that the project pins, below `tree`; returns the version."""
    place = tree / package.directory / "new"
    place.mkdir(parents=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--no-compile", "--only-binary", ":all:", "--constraint", str(CONSTRAINTS)]
    command += ["--target", str(place), package.wheel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_DEADLINE, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Problem(f"pip could not install the wheel {package.wheel}: {last}")
    (metadata,) = place.glob(f"{package.wheel}-*.dist-info")
    version = metadata.name.removeprefix(f"{package.wheel}-").removesuffix(".dist-info")
    (place / ".cvmfscatalog").touch()
    place.rename(place.with_name(version))
    return version
