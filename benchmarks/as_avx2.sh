#!/usr/bin/env bash
# Runs a command as on a processor with AVX2 and nothing newer: torch, MKL and oneDNN take the code they have for it.
#
#     benchmarks/as_avx2.sh /tmp/peer/bin/python benchmarks/inference.py
#
# The targets were set on such a machine: 2 cores, 129 GFLOP/s in float32. One with AVX-512 computes twice as fast and
# reads memory no faster, so other things bound it. Results are named *_avx2.json and say "instructions": "AVX2".
# Libraries with a choice of their own (onnxruntime, OpenVINO, FAISS) are not held back by this.
set -euo pipefail
export ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
exec "$@"
