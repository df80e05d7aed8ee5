#!/bin/sh
# Makes the environment with Ray Data and LanceDB, which are some 700 MB and no part of the developers' one.
#
#   benchmarks/distributed_environment.sh FOLDER        then FOLDER/bin/python benchmarks/bulk.py
#   FOLDER/bin/python -m pytest tests/unit/test_bulk.py tests/unit/test_bulk_input.py tests/unit/test_bulk_index.py tests/dist/test_bulk_ray.py
set -eu
folder=${1:?usage: benchmarks/distributed_environment.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --constraint "$here/constraints.txt" \
    --editable "$here[distributed,search]" pytest pytest-timeout hypothesis
"$folder/bin/python" -c 'import lancedb, ray; print("ray", ray.__version__, "lancedb", lancedb.__version__)'
