#!/bin/sh
# Makes the environment in which open_clip and ours are compared, with one torch for both.
#
#   benchmarks/peer_environment.sh FOLDER        then FOLDER/bin/python benchmarks/inference.py
#
# torchvision, which open_clip needs, must match torch build for build and has no CPU build on the registry: so this
# takes the registry's torch with its CUDA packages (several GB), and not the project's. transformers is an old one: with
# what a fresh install takes (4.57 and 5 alike), open_clip's generation asserts that transformers isn't installed.
set -eu
folder=${1:?usage: benchmarks/peer_environment.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check \
    "torch>=2.14" torchvision "open_clip_torch==3.3.0" "transformers==4.49.0" onnx onnxscript onnxruntime openvino \
    webdataset simplejpeg
"$folder/bin/pip" install --quiet --disable-pip-version-check --editable "$here"
"$folder/bin/python" -c 'import open_clip, opencoca, torch; print("torch", torch.__version__, "open_clip", open_clip.__version__)'
