# SPDX-License-Identifier: BSD-3-Clause
"""PROCESS: owns the job queue; talks to agents and the storage adapter over XMPP, to submitters over D-Bus."""
