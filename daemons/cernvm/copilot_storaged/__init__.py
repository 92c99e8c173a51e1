# SPDX-License-Identifier: BSD-3-Clause
"""The storage adapter: takes the files of jobs over HTTP and makes one attempt's files the result of its job."""
