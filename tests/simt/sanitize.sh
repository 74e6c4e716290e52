#!/usr/bin/env bash
# `sanitize.sh PROGRAM`: the emulated kernels pass under AddressSanitizer, and it sees what it should.
set -euo pipefail
"$1"
for memory in local heap; do
  if report=$("$1" "$memory" 2>&1) || ! grep -q "AddressSanitizer: .*-buffer-overflow" <<<"$report"; then
    echo "AddressSanitizer did not see an overflow of $memory memory:"
    echo "$report"
    exit 1
  fi
done
