"""Matrices in 8 bits: the rounding's bound, and a graph that onnxruntime runs to the rounded matrices' products."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from opencoca.interop.onnx_int8 import BLOCKS, CENTRE, block_size, pack, quantised


def unpack(packed: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """The matrix [inputs, outputs] that stored values stand for."""
    values = (packed.astype(np.float32) - CENTRE) * scales[..., None]
    return values.reshape(len(packed), -1)[:, :inputs].T


@given(st.integers(1, 300), st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_rounding_is_within_half_a_step_of_each_block(inputs: int, outputs: int, size: float, seed: int) -> None:
    matrix = size * np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)
    packed, scales = pack(matrix)
    block = block_size(inputs)
    blocks = -(-inputs // block)
    assert packed.dtype == np.uint8 and packed.shape == (outputs, blocks, block)
    assert scales.dtype == np.float32 and scales.shape == (outputs, blocks)
    steps = np.repeat(scales, block, axis=1)[:, :inputs].T
    assert (np.abs(unpack(packed, scales, inputs) - matrix) <= 0.5001 * steps).all()


@pytest.mark.parametrize(("inputs", "wanted"), [(512, 128), (768, 128), (192, 64), (96, 32), (48, 16), (50, 16)])
def test_blocks_waste_nothing_where_they_can(inputs: int, wanted: int) -> None:
    assert block_size(inputs) == wanted and wanted in BLOCKS


def test_zeros_stay_zeros() -> None:
    packed, scales = pack(np.zeros((5, 3), np.float32))
    assert (packed == CENTRE).all() and (unpack(packed, scales, 5) == 0).all()


@pytest.mark.parametrize("inputs", [48, 128, 200])
@pytest.mark.parametrize("rows", [1, 8, 48])
def test_onnxruntime_multiplies_by_the_rounded_matrices(inputs: int, rows: int) -> None:
    """Of x @ A (a product), y @ H.T (a head) and y @ y.T (no constant), the first two are in 8 bits."""
    rng = np.random.default_rng(inputs + rows)
    first = rng.standard_normal((inputs, 64)).astype(np.float32)
    head = rng.standard_normal((32, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["y"]),
            helper.make_node("Gemm", ["y", "H"], ["logits"], transB=1),
            helper.make_node("Transpose", ["y"], ["turned"]),
            helper.make_node("MatMul", ["y", "turned"], ["gram"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "logits", "gram")],
        [numpy_helper.from_array(first, "A"), numpy_helper.from_array(head, "H")],
    )
    proto = quantised(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    assert [node.op_type for node in proto.graph.node] == ["MatMulNBits", "MatMulNBits", "Transpose", "MatMul"]
    assert {tensor.name for tensor in proto.graph.initializer} == {"A.int8", "A.scales", "H.int8", "H.scales"}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    y, logits, _ = session.run(["y", "logits", "gram"], {"x": x})
    for given_, matrix, result in ((x, first, y), (y, head.T, logits)):
        wanted = given_ @ unpack(*pack(matrix), len(matrix))
        # activations are rounded too, in steps of 1/127 of a block's largest value: 1/sqrt(12) of a step on average
        error = np.sqrt(np.square(result - wanted).mean()) / wanted.std()
        assert error < 0.012  # measured: 0.0085
