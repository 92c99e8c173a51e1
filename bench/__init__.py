# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks: one module per area, each measured beside something else in the same run."""
