"""Each rule of TensorRT's operator table on a graph of a node or two; whole networks that must pass."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from v2r_core.deploy.tensorrt_check import MAX_TOP_K, TensorRTError, check_tensorrt

X = "x"


def graph(nodes, constants=None, shape=(1, 3, 8, 8), dtype=TensorProto.FLOAT, opset=18, out=TensorProto.FLOAT):
    """A model from `x` to `y` of unknown shape."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(X, dtype, shape)],
            [helper.make_tensor_value_info("y", out, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def node(op, inputs=(X,), outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"the_{op}", **attributes)


SCALES = {"scales": np.array([1, 1, 2, 2], np.float32)}
RESIZE = (X, "", "scales")
AXES = np.array([1])
FLOAT_TWO = {"two": np.float32(2)}


def shape_of_x(op, *before):
    """A node whose last input is computed from the shape of x."""
    return [node("Shape", outputs=("s",)), node(op, (X, *before, "s"))]


REFUSED = {
    "cubic": (graph([node("Resize", RESIZE, mode="cubic")], SCALES), "mode is cubic"),
    "antialias": (graph([node("Resize", RESIZE, mode="linear", antialias=1)], SCALES), "antialias is 1"),
    "aspect": (
        graph([node("Resize", (X, "", "", "n"), keep_aspect_ratio_policy="not_larger")], {"n": np.array([1, 3, 9, 9])}),
        "keep_aspect_ratio_policy is not_larger",
    ),
    "top_k": (
        graph([node("TopK", (X, "k"), ("y", "i"))], {"k": np.array([MAX_TOP_K])}, (1, 9000)),
        f"K is {MAX_TOP_K}",
    ),
    "top_k_unsorted": (graph([node("TopK", (X, "k"), ("y", "i"), sorted=0)], {"k": np.array([2])}), "sorted is 0"),
    "reduce_axes": (graph(shape_of_x("ReduceMean")), "axes is computed"),
    "squeeze_axes": (graph(shape_of_x("Squeeze")), "axes is computed"),
    "unsqueeze_axes": (graph(shape_of_x("Unsqueeze")), "axes is computed"),
    "slice_axes": (graph(shape_of_x("Slice", "a", "b"), {"a": AXES, "b": AXES}), "axes is computed"),
    "pad_axes": (graph(shape_of_x("Pad", "p", ""), {"p": np.zeros(8, np.int64)}), "axes is computed"),
    "cumsum_axis": (graph([node("Size", outputs=("s",)), node("CumSum", (X, "s"))]), "axis is computed"),
    "one_hot_depth": (
        graph([node("Size", outputs=("s",)), node("OneHot", (X, "s", "v"))], {"v": np.array([0, 1], np.float32)}),
        "depth is computed",
    ),
    "layer_norm": (
        graph([node("LayerNormalization", (X, "w"), ("y", "mean"))], {"w": np.ones(8, np.float32)}),
        "Mean and InvStdDev",
    ),
    "max_pool_dilated": (graph([node("MaxPool", kernel_shape=[2, 2], dilations=[2, 1])]), r"dilations is \[2, 1\]"),
    "max_pool_indices": (graph([node("MaxPool", outputs=("y", "i"), kernel_shape=[2, 2])]), "Indices"),
    "pool_1d": (graph([node("AveragePool", kernel_shape=[2])], shape=(1, 3, 8)), "1 axes, 2 or 3 taken"),
    "scatter": (
        graph(
            [node("ScatterND", (X, "i", "u"), reduction="add")],
            {"i": np.array([[0]]), "u": np.ones((1, 3, 8, 8), np.float32)},
        ),
        "reduction is add",
    ),
    "grid_sample": (
        graph([node("GridSample", (X, "g"))], {"g": np.zeros((1, 2, 2, 2, 3), np.float32)}, (1, 3, 4, 4, 4), opset=20),
        "X has 5 axes",
    ),
    "eye_like": (graph([node("EyeLike")], shape=("n", 8)), "not fixed"),
    "dropout": (graph([node("Dropout", (X, "", "t"))], {"t": np.array(True)}), "training_mode"),
    "random": (graph([node("RandomNormalLike")]), "seed is ignored"),
    "if": (
        graph(
            [
                node(
                    "If",
                    ("c",),
                    then_branch=helper.make_graph(
                        [node("Relu", outputs=("a",))], "a", [], [helper.make_tensor_value_info("a", 1, None)]
                    ),
                    else_branch=helper.make_graph(
                        [node("Neg", outputs=("b",))], "b", [], [helper.make_tensor_value_info("b", 1, None)]
                    ),
                )
            ],
            {"c": np.array(True)},
        ),
        "control flow",
    ),
    "non_zero": (graph([node("NonZero")], out=TensorProto.INT64), "depends on the data"),
    "double_inside": (
        graph([node("Cast", outputs=("d",), to=TensorProto.DOUBLE), node("Cast", ("d",), to=TensorProto.FLOAT)]),
        "d is DOUBLE",
    ),
    "double_input": (graph([node("Cast", to=TensorProto.FLOAT)], dtype=TensorProto.DOUBLE), "DOUBLE"),
    "uint16": (
        graph([node("Cast", outputs=("d",), to=TensorProto.UINT16), node("Cast", ("d",), to=TensorProto.FLOAT)]),
        "d is UINT16",
    ),
    "uint8_computed": (
        graph([node("Transpose", outputs=("t",)), node("Cast", ("t",), to=1)], dtype=TensorProto.UINT8),
        "uint8",
    ),
    "uint8_shape": (
        graph([node("Shape", outputs=("s",)), node("Cast", ("s",), to=1)], dtype=TensorProto.UINT8),
        "uint8",
    ),
    "int8": (
        graph([node("Cast", outputs=("q",), to=TensorProto.INT8), node("Cast", ("q",), to=TensorProto.FLOAT)]),
        "8 or 4 bit",
    ),
    "unsupported": (graph([node("Det")], shape=(3, 3)), "not supported"),
    "qlinear": (
        graph(
            [
                node("QuantizeLinear", (X, "s", "z"), ("q",)),
                node("QLinearMatMul", ("q", "s", "z", "q", "s", "z", "s", "z"), ("r",)),
                node("DequantizeLinear", ("r", "s", "z")),
            ],
            {"s": np.float32(1), "z": np.int8(0)},
        ),
        r"the_QLinearMatMul \(QLinearMatMul\): not supported",
    ),
    "sequence": (
        graph([node("SequenceConstruct", outputs=("s",)), node("ConcatFromSequence", ("s",), axis=0)]),
        "the_SequenceConstruct",
    ),
    "opset_low": (graph([node("Relu")], opset=8), "opset 8: TensorRT reads 9 to 20"),
    "opset_high": (graph([node("Relu")], opset=23), "opset 23"),
    "domain": (graph([node("Gelu", domain="com.microsoft")]), "domain 'com.microsoft'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    model, message = REFUSED[name]
    with pytest.raises(TensorRTError, match=message) as error:
        check_tensorrt(model)
    assert ";" in str(error.value), "a remedy follows the finding"


def test_the_message_names_node_operator_attribute_and_remedy():
    with pytest.raises(TensorRTError) as error:
        check_tensorrt(REFUSED["antialias"][0])
    text = str(error.value)
    assert text.startswith("the_Resize (Resize): attribute antialias is 1; ") and "before export" in text


ALLOWED = {
    "nearest": graph([node("Resize", RESIZE, mode="nearest")], SCALES),
    "linear": graph([node("Resize", RESIZE, mode="linear")], SCALES),
    "top_k": graph([node("TopK", (X, "k"), ("y", "i"))], {"k": np.array([MAX_TOP_K - 1])}, (1, 9000)),
    "reduce": graph([node("ReduceMean", (X, "a"))], {"a": AXES}),
    "reduce_axes_in_a_constant_node": graph(
        [
            helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(AXES)),
            node("ReduceMean", (X, "a")),
        ]
    ),
    "reduce_all": graph([node("ReduceMean")]),
    "max_pool": graph([node("MaxPool", kernel_shape=[2, 2], dilations=[1, 1])]),
    "layer_norm": graph([node("LayerNormalization", (X, "w"))], {"w": np.ones(8, np.float32)}),
    "scatter": graph(
        [node("ScatterND", (X, "i", "u"))], {"i": np.array([[0]]), "u": np.ones((1, 3, 8, 8), np.float32)}
    ),
    "dropout": graph([node("Dropout", (X, "", "t"))], {"t": np.array(False)}),
    "eye_like": graph([node("EyeLike")], shape=(8, 8)),
    "uint8_input": graph([node("Cast", to=TensorProto.FLOAT)], dtype=TensorProto.UINT8),
    "half": graph([node("Cast", outputs=("h",), to=TensorProto.FLOAT16), node("Cast", ("h",), to=TensorProto.FLOAT)]),
    "quantised": graph(
        [node("QuantizeLinear", (X, "s", "z"), ("q",)), node("DequantizeLinear", ("q", "s", "z"))],
        {"s": np.float32(1), "z": np.int8(0)},
    ),
    "opset_9": graph([node("Relu")], opset=9),
    "opset_20": graph([node("Relu")], opset=20),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name):
    check_tensorrt(ALLOWED[name])


def test_a_file_is_read_without_its_weights(tmp_path):
    model = graph([node("Mul", (X, "two"))], FLOAT_TWO)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="gone.bin", size_threshold=0)
    (tmp_path / "gone.bin").unlink()
    check_tensorrt(tmp_path / "model.onnx")
