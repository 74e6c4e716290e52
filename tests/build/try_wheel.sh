#!/usr/bin/env bash
# try_wheel.sh WHEEL: installs the wheel in a fresh environment and uses it from another folder;
# then the editable install. With TRY_PYTHONS="python3.12 ..." also imports the same wheel there.
set -euo pipefail
wheel=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat > "$scratch/smoke.py" <<'PY'
import sys
import torch
import fastops

x = torch.randn(7, 1000, requires_grad=True)
y = fastops.softmax(x, -1)
y.square().sum().backward()
torch.testing.assert_close(y, torch.softmax(x, -1))
assert x.grad is not None
print("ok:", sys.version.split()[0], "torch", torch.__version__, fastops.__file__)
PY

check() {  # check PYTHON: what a user would do, away from the source tree
  (cd "$scratch" && "$1" smoke.py && "$1" -m fastops.info >/dev/null)
}

env_with_torch() {  # env_with_torch INTERPRETER DIR
  "$1" -m venv "$2"
  "$2/bin/pip" install -q "torch==2.13.0" numpy
}

env_with_torch "${PYTHON:-python3}" "$scratch/env"
"$scratch/env/bin/pip" install -q --no-deps "$wheel"
check "$scratch/env/bin/python"

"$scratch/env/bin/pip" uninstall -q -y fastops
"$scratch/env/bin/pip" install -q -r "$root/requirements/build.txt"
PATH="$scratch/env/bin:$PATH" FASTOPS_CUDA=off \
  "$scratch/env/bin/pip" install -q --no-build-isolation --no-deps -e "$root"
check "$scratch/env/bin/python"

for python in ${TRY_PYTHONS:-}; do
  env_with_torch "$python" "$scratch/env-$python"
  "$scratch/env-$python/bin/pip" install -q --no-deps "$wheel"
  check "$scratch/env-$python/bin/python"
done
