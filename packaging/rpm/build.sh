#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Builds the RPMs into build/rpm, or into the folder given, from the files of this checkout that git
# does not ignore, the same bytes each time.
# On a system without rpm's own macros for systemd (Debian, say) macros.cernvm stands in for them, and build
# requirements are not looked up, since its rpm database is empty; `make setup` has installed them.
set -eu

cd "$(dirname "$0")/../.."
top=${1:-$(pwd)/build/rpm}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' daemons/cernvm/__init__.py)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

rm -rf "$top"
mkdir -p "$top/SOURCES"
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- --transform "s,^,cernvm-$version/," --sort=name \
    --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw |
    gzip -9n >"$top/SOURCES/cernvm-$version.tar.gz"

for users in systemd/sysusers.d/*.conf; do
    name=${users##*/}
    cp "$users" "$top/SOURCES/${name%.conf}.sysusers.conf"
done

set -- --define "_topdir $top" --define "_buildhost localhost" --define "use_source_date_epoch_as_buildtime 1" \
    --define "clamp_mtime_to_source_date_epoch 1" --define "rst2man_program $(pwd)/.venv/bin/rst2man"
if [ "$(rpm --eval '%{_unitdir}')" = '%{_unitdir}' ]; then
    set -- --nodeps --load packaging/rpm/macros.cernvm "$@"
fi
rpmbuild --quiet "$@" -bb packaging/rpm/cernvm.spec >"$top/log" 2>&1 || { cat "$top/log" >&2; exit 1; }
find "$top/RPMS" -name '*.rpm' | sort
