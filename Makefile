# SPDX-License-Identifier: BSD-3-Clause
# The targets; `make` alone lists them.  `install` is the one install recipe: the RPM and its tests use it.

VENV := .venv/bin
TESTFLAGS ?=
AREA ?=

# Where `install` puts things; DESTDIR stands before all of them.
PREFIX ?= /usr
SYSCONFDIR ?= /etc
BINDIR ?= $(PREFIX)/bin
SBINDIR ?= $(PREFIX)/sbin
DATADIR ?= $(PREFIX)/share
UNITDIR ?= $(PREFIX)/lib/systemd/system
GENERATORDIR ?= $(PREFIX)/lib/systemd/system-generators
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
# The interpreter that the installed commands run with, 3.11 or later; what turns docs/man into man pages.
PYTHON ?= /usr/bin/python3
RST2MAN ?= $(firstword $(wildcard $(VENV)/rst2man) rst2man)

DAEMONS := cvmfsd copilot-agentd copilot-jobmanagerd copilot-storaged
COMMANDS := cvmfs-server cvmfsctl cvmfsd-mount cvmfs_config cvmfs_talk copilotctl
MANPAGES := $(patsubst docs/man/%.rst,build/man/%,$(wildcard docs/man/*.rst))
MODULES := $(shell find daemons/cernvm -name '*.py' -o -name py.typed | sort)

.PHONY: help setup check test unit demo bench install rpm docs manpages clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: system packages, then .venv with every command
	@packaging/setup.sh

check: setup ## lint, types, walls, names, units: under a minute
	$(VENV)/pytest -q tests/walls -m 'not real' $(TESTFLAGS)

test: setup ## everything: unit, real and wall tests (TESTFLAGS= for pytest)
	$(VENV)/pytest $(TESTFLAGS)

unit: setup ## the fast tests only
	$(VENV)/pytest -q tests/unit $(TESTFLAGS)

demo: setup ## the main job: PYTHIA 8 from a repository of its own, by job manager and two agents, on loopback
	$(VENV)/python -m demo

bench: setup ## measure one AREA= into build/bench/AREA.json
	$(VENV)/python -m bench $(AREA)

docs: setup ## man pages into build/man
	@$(MAKE) --no-print-directory manpages

manpages: $(MANPAGES)

build/man/%: docs/man/%.rst docs/man/options.inc
	@mkdir -p $(@D)
	$(RST2MAN) --strict $< $@

install: $(MANPAGES) ## install into DESTDIR= with PREFIX=/usr
	set -e; for module in $(MODULES:daemons/%=%); do \
	  install -D -m 644 daemons/$$module $(DESTDIR)$(DATADIR)/cernvm/$$module; done
	set -e; for name in $(DAEMONS); do \
	  $(call launcher,cernvm.$$(echo $$name | tr - _).__main__,$(SBINDIR)/$$name); \
	  install -D -m 644 systemd/system/$$name.service $(DESTDIR)$(UNITDIR)/$$name.service; \
	  install -D -m 644 etc/cernvm/$$name.conf $(DESTDIR)$(SYSCONFDIR)/cernvm/$$name.conf; done
	set -e; for name in $(COMMANDS); do \
	  $(call launcher,cernvm.cli.$$(echo $$name | tr - _),$(BINDIR)/$$name); done
	$(call launcher,cernvm.cli.mount_cvmfs,$(SBINDIR)/mount.cvmfs)
	$(call launcher,cernvm.cli.cvmfs_automount,$(GENERATORDIR)/cvmfsd-automount)
	install -D -m 644 -t $(DESTDIR)$(UNITDIR) systemd/system/cernvm.target
	install -D -m 644 -t $(DESTDIR)$(SYSUSERSDIR) systemd/sysusers.d/*.conf
	install -D -m 644 -t $(DESTDIR)$(TMPFILESDIR) systemd/tmpfiles.d/*.conf
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/dbus-1/system.d systemd/dbus-1/system.d/*.conf
	install -D -m 644 -t $(DESTDIR)$(DATADIR)/dbus-1/system-services systemd/dbus-1/system-services/*.service
	install -D -m 644 -t $(DESTDIR)$(SYSCONFDIR)/cvmfs etc/cvmfs/default.conf
	install -d $(DESTDIR)$(SYSCONFDIR)/cvmfs/keys $(DESTDIR)$(SYSCONFDIR)/cvmfs/config.d \
	  $(DESTDIR)$(SYSCONFDIR)/cvmfs/domain.d
	set -e; for page in $(MANPAGES); do \
	  install -D -m 644 $$page $(DESTDIR)$(DATADIR)/man/man$${page##*.}/$${page##*/}; done

# $(call launcher,MODULE,PATH): the command PATH that runs main() of MODULE.
define launcher
mkdir -p $$(dirname $(DESTDIR)$(2)); \
sed -e 's|@PYTHON@|$(PYTHON)|' -e 's|@LIBRARY@|$(DATADIR)/cernvm|' -e "s|@MODULE@|$(1)|" packaging/launcher.in \
  > $(DESTDIR)$(2); \
chmod 755 $(DESTDIR)$(2)
endef

rpm: docs ## RPMs into build/rpm
	packaging/rpm/build.sh

clean: ## remove build/ (not .venv)
	rm -rf build
