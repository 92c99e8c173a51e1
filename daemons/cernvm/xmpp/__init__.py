# SPDX-License-Identifier: BSD-3-Clause
"""The adapter between copilot messages and XMPP; the only room that knows slixmpp."""
