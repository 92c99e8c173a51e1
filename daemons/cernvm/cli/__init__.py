# SPDX-License-Identifier: BSD-3-Clause
"""The commands; leaves like the processes, imported by nobody."""
