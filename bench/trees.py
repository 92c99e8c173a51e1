# SPDX-License-Identifier: BSD-3-Clause
"""Trees to measure with: made of a fixed seed, so that two machines publish the same.  No threads."""

from __future__ import annotations

from pathlib import Path
from random import Random


def software(directory: Path, *, files: int, large_mb: int) -> int:
    """Make a tree like installed software: `files` small texts in packages of 100, one large file of numbers.

    Small files have 0.2 to 8 kB.  Returns the bytes written.
    """
    random = Random(7)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz_", k=random.randint(2, 10))) for _ in range(2000)]
    written = 0
    for number in range(files):
        package = directory / f"package{number // 100:03d}"
        if number % 100 == 0:
            package.mkdir(parents=True)
            if number % 1000 == 0:
                (package / ".cvmfscatalog").touch()
        text = " ".join(random.choices(words, k=random.randint(30, 1200))).encode()
        (package / f"module{number % 100:02d}.py").write_bytes(text)
        written += len(text)
    with (directory / "grid.dat").open("wb") as file:
        for _ in range(large_mb * 16):
            block = b"".join(b"%.6f\n" % random.gauss(0, 1) for _ in range(7200))[: 1 << 16]
            file.write(block)
            written += len(block)
    return written
