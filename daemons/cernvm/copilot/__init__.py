# SPDX-License-Identifier: BSD-3-Clause
"""Co-Pilot: jobs, the messages about them, and the state machines of those who exchange them.

Everything here is a library and starts nothing.  `messages`, `delivery`, `job`, `agent` and `broker` do no I/O at all:
clocks and randomness are arguments, so a test can play a hostile network with a fixed seed.  `queue`, `tokens`,
`transfer`, `store` and `sandbox` are the few rooms that touch the disk, the network or processes.
"""
