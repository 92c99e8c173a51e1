# SPDX-License-Identifier: BSD-3-Clause
"""The program cvmfsd."""

from cernvm.kit.service import entry_point

from .daemon import SERVICE

main = entry_point(SERVICE)

if __name__ == "__main__":
    raise SystemExit(main())
