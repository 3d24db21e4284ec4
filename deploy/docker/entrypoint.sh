#!/bin/sh
# Other containers reach this one by its own address: bind and announce that, unless told otherwise.
set -eu
address=$(hostname -i | cut -d' ' -f1)
export SLOS_WORKER_HOST="${SLOS_WORKER_HOST:-$address}"
export SLOS_NIXL_HOST="${SLOS_NIXL_HOST:-$address}"
exec "$@"
