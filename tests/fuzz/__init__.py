# SPDX-License-Identifier: BSD-3-Clause
"""Foreign bytes, broken at random, against every parser of the repository format.

`tests/unit/test_cvmfs_fuzz.py` runs a little of it each time; `python -m tests.fuzz --minutes 30` runs it at length.
"""
