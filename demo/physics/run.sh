# SPDX-License-Identifier: BSD-3-Clause
# What a physicist's job does: take the software from /cvmfs, run the program.  Arguments: seed, number of events.
set -eu
CVMFS_SOFTWARE=$CVMFS_MOUNT_DIR/software.demo.example
. "$CVMFS_SOFTWARE/setup.sh"
exec "$PYTHON" minbias.py --seed "$1" --events "$2" --output histograms.npz
