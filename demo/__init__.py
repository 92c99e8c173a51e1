# SPDX-License-Identifier: BSD-3-Clause
"""The main job on real input: a physicist's jobs through the whole house, on one machine, in a scratch directory."""
