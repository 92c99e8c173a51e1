# SPDX-License-Identifier: BSD-3-Clause
"""The process cvmfsd: a supervisor on D-Bus, and one child process with one FUSE session per mounted repository.

Two processes, because a FUSE library may hold one session per process, and because a repository that goes wrong takes
no other with it.  The supervisor never touches a mounted file system on its own loop.
"""
