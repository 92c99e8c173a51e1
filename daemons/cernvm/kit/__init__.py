# SPDX-License-Identifier: BSD-3-Clause
"""The floor that every process stands on; it knows no word of any domain."""
