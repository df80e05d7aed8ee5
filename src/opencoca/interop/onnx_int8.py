"""The matrices of an ONNX graph as 8-bit integers: a quarter of the memory that each decoding step has to read.

Each output channel is cut into blocks of inputs, each with a float32 scale of its own (symmetric, so no offset).
onnxruntime's MatMulNBits reads them; its 8-bit kernels round each block of the activations to 8 bits as well, row by
row, so a picture's caption doesn't depend on what else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

BLOCKS, BITS = (128, 64, 32, 16), 8
CENTRE = 128  # stored values are unsigned
INT8_COMPUTE = 4  # MatMulNBits' accuracy_level; with the default, float32, 8 bits are slower than none


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every product by a constant matrix in 8 bits; embeddings, norms and biases stay as they are."""
    from onnx import helper, numpy_helper

    graph = proto.graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes = list(graph.node)
    for place, node in enumerate(nodes):
        name = _matrix(node)
        if name not in matrices:
            continue
        matrix_IO = numpy_helper.to_array(matrices[name])
        if node.op_type == "Gemm":
            matrix_IO = matrix_IO.T
        packed, scales = pack(matrix_IO)
        graph.initializer.append(numpy_helper.from_array(packed, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
        inputs, outputs = matrix_IO.shape
        nodes[place] = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}.int8", f"{name}.scales"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=BITS,
            block_size=packed.shape[2],
            accuracy_level=INT8_COMPUTE,
        )
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def block_size(inputs: int) -> int:
    """How many inputs of a matrix share a scale: the largest of `BLOCKS` that divides them, else the smallest."""
    return next((size for size in BLOCKS if inputs % size == 0), BLOCKS[-1])


def pack(matrix_IO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored values uint8 [O,blocks,block] and scales float32 [O,blocks] of a matrix [inputs, outputs].

    Where `block_size` doesn't divide the inputs, the last block is filled up with zeros.
    """
    inputs, outputs = matrix_IO.shape
    block = block_size(inputs)
    padded = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    padded[:, :inputs] = matrix_IO.T
    cut = padded.reshape(outputs, -1, block)
    scales = np.abs(cut).max(axis=2) / (CENTRE - 1)
    levels = np.rint(cut / np.where(scales == 0, 1, scales)[..., None])
    return (levels + CENTRE).astype(np.uint8), scales


def _matrix(node: onnx.NodeProto) -> str:
    """The name of what a product's left side is multiplied by; empty for other nodes."""
    return node.input[1] if node.op_type == "MatMul" or (node.op_type == "Gemm" and len(node.input) == 2) else ""
