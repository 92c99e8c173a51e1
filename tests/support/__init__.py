# SPDX-License-Identifier: BSD-3-Clause
"""Real servers for tests and for the demo, each on loopback, in a directory of its own, and gone at the end.

No pytest in these modules (the demo uses them too).  Main thread only: the servers are child processes that
die with the thread that started them.
"""
