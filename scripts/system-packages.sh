#!/bin/sh
# As root on Debian: installs the system packages that tests and benchmarks use and that are missing, and says so.
# As an ordinary user it only says what is missing: those tests are skipped with their reason.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""
need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need wrk wrk
need setpriv util-linux
need ip iproute2
need useradd passwd
need redis-server redis-server
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
need systemd-analyze systemd
azurite=azurite@3.35.0 # an Azure blob store for the tests of the origin; only npm has it
command -v azurite-blob >/dev/null 2>&1 && azurite="" || need npm npm
need chromium chromium
need gcc gcc
need qemu-system-x86_64 qemu-system-x86
need mkfs.erofs erofs-utils
need nft nftables
need keepalived keepalived
need conntrackd conntrackd
need conntrack conntrack
need iperf3 iperf3
[ -e /usr/include/python3.11/Python.h ] || [ ! -x /usr/bin/python3.11 ] || missing="$missing python3.11-dev libc6-dev" # what is built from C source
[ -d /usr/share/fonts/truetype/dejavu ] || missing="$missing fonts-dejavu-core"
sh "$(dirname "$0")/find-python.sh" >/dev/null 2>&1 || missing="$missing python3.11 python3.11-venv"

[ -n "$missing$azurite" ] || exit 0
if [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ] && command -v apt-get >/dev/null; then
    echo "Installing missing system packages:$missing $azurite"
    export DEBIAN_FRONTEND=noninteractive
    # tests start servers of their own: none of the packages' services is to run because of us
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # shellcheck disable=SC2086 - a list of words
    [ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
    # without it one test is skipped, and where skips are forbidden says so
    [ -z "$azurite" ] || npm install --global --no-fund --no-audit --silent "$azurite" >/dev/null || echo "not installed: $azurite"
else
    echo "Missing system packages:$missing $azurite (what needs them is skipped; as root on Debian they are installed)"
fi
