# SPDX-License-Identifier: BSD-3-Clause
"""PROCESS: gets jobs from the job manager over XMPP and runs them; asks cvmfsd over D-Bus for their software."""
