# SPDX-License-Identifier: BSD-3-Clause
"""CernVM: software by CernVM-FS, jobs by Co-Pilot, as services of the host."""

__version__ = "0.1.0"
