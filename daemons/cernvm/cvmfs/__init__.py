# SPDX-License-Identifier: BSD-3-Clause
"""The CernVM-FS repository format: reading it, showing it as a file system, and (in `publish`) writing it.

Synchronous and thread-safe; it starts nothing and knows no kernel interface.
"""
