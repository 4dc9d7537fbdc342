#!/bin/sh
# Prints the CPython for the environment: 3.11 or later, with venv, and one that every user may execute, because sandboxes
# and templates run it under other user ids. Not one below somebody's home folder.
set -eu

check='
import os, sys
if sys.implementation.name != "cpython" or sys.version_info < (3, 11):
    sys.exit("is older than 3.11 or no CPython")
for path in (os.path.realpath(sys.executable), os.path.realpath(os.__file__)):
    while path != "/":
        if not os.stat(path).st_mode & (0o001 if os.path.isdir(path) or path == os.path.realpath(sys.executable) else 0o004):
            sys.exit(f"cannot be used by every user ({path})")
        path = os.path.dirname(path)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(f"has no venv (Debian: apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv)")
'

candidates="${PYTHON:-} /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 /usr/local/bin/python3.11 /usr/local/bin/python3.12"
candidates="$candidates /usr/local/bin/python3.13"
for name in python3.11 python3.12 python3.13 python3; do
    candidates="$candidates $(command -v "$name" || true)"
done

seen=""
why=""
for candidate in $candidates; do
    case " $seen " in *" $candidate "*) continue ;; esac
    seen="$seen $candidate"
    [ -x "$candidate" ] || continue
    if said=$("$candidate" -I -c "$check" 2>&1); then
        echo "$candidate"
        exit 0
    fi
    why="$why
  $candidate: $(echo "$said" | tail -n 1)"
done
echo "No usable Python: CPython 3.11 or later with venv, which every user may execute, is needed.${why}" >&2
echo "Install one (Debian: apt-get install python3.11 python3.11-venv) or name one: make PYTHON=/path/to/python3.11" >&2
exit 1
