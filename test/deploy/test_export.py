"""Graphs that say the same as torch, in both precisions, with nothing of the machine in them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from v2r_core.deploy import export, graph, half
from v2r_core.deploy.bundle import RewardSpec, load_bundle
from v2r_core.deploy.export import ExportError, check_image, export_bundle, export_encoder, probe_frames
from v2r_core.deploy.tensorrt_check import TensorRTError, check_tensorrt
from v2r_core.encoders.encoder import Encoder, WeightsInfo, numpy_embed
from v2r_core.encoders.fold import FoldError, fold_batch_norm, round_weights
from v2r_core.encoders.zoo import create_encoder
from v2r_core.video.resize import Preprocess

SIZE = 32


def make_encoder(backbone, dim, size=SIZE):
    preprocess = Preprocess(size, "squash", size, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return Encoder("test", backbone, preprocess, dim, WeightsInfo("test", "none"))


class Small(nn.Module):
    """Convolutions with batch norm, one whose output is also read elsewhere if `shared`; a layer norm; a pool."""

    def __init__(self, shared=False, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 40, 3, stride=2, groups=8)
        self.second_norm = nn.BatchNorm2d(40, affine=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(40)
        self.shared, self.scale = shared, scale
        for norm in (self.first_norm, self.second_norm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        raw = self.first(images)
        hidden = self.first_norm(raw).relu() * self.scale
        if self.shared:
            hidden = hidden + raw
        hidden = self.second_norm(self.second(hidden)).relu() / self.scale
        return self.norm(self.pool(hidden).flatten(1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Encoder, folder and record of an export with shared half weights."""
    encoder = make_encoder(Small(), 40)
    folder = tmp_path_factory.mktemp("small")
    return encoder, folder, export_encoder(encoder, folder, half_weights=True)


def run(path, frames):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"frames": frames})[0]


def operators(path):
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("fp16", 5e-3)])
def test_the_graphs_say_what_the_exported_encoder_says(small, precision, limit, batch):
    _, folder, exported = small
    frames = np.random.default_rng(5).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    found = run(folder / f"encoder.{precision}.onnx", frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_embed(exported.encoder)(frames), atol=limit)


def test_the_record_holds_what_was_measured(small):
    encoder, folder, exported = small
    probes = np.concatenate([probe_frames(SIZE), check_image(SIZE)])
    rounded, original = numpy_embed(exported.encoder)(probes), numpy_embed(encoder)(probes)
    cosines = (rounded * original).sum(1) / np.linalg.norm(rounded, axis=1) / np.linalg.norm(original, axis=1)
    parity = exported.spec.parity
    assert parity["rounding_min_cosine"] == pytest.approx(cosines.min(), abs=1e-6) and cosines.min() < 1
    error = np.abs(run(folder / "encoder.fp32.onnx", probes) - rounded).max() / np.abs(rounded).max()
    assert parity["fp32_max_rel_error"] == pytest.approx(error, abs=2e-6)
    assert 0.999 <= parity["fp16_min_cosine"] < 1
    assert (exported.spec.opset, exported.spec.embedding_dim) == (18, 40)


def test_the_encoder_that_was_given_is_not_changed(small):
    encoder, _, exported = small
    assert encoder.training and encoder.backbone.first.bias is None
    assert isinstance(encoder.backbone.pool, nn.AdaptiveAvgPool2d)
    assert not exported.encoder.training


def test_the_stored_answer_is_that_of_the_graph_and_notices_swapped_colours(small):
    _, folder, exported = small
    check = exported.check
    image = check_image(SIZE)

    def distance(frames):
        head = run(folder / "encoder.fp32.onnx", frames)[0][: len(check.embedding_head)]
        return np.abs(head - check.embedding_head).max() / check.embedding_norm

    assert distance(image) < check.tolerance / 10
    assert distance(image[..., ::-1].copy()) > check.tolerance


def test_weights_are_stored_once_in_half(small):
    _, folder, exported = small
    assert exported.files == ["encoder.fp32.onnx", "encoder.fp16.onnx", "encoder.weights.bin"]
    places = {}
    for precision in ("fp32", "fp16"):
        model = onnx.load(folder / f"encoder.{precision}.onnx", load_external_data=False)
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert {tensor.data_type for tensor in external} == {TensorProto.FLOAT16}
        entries = [{item.key: item.value for item in tensor.external_data} for tensor in external]
        assert {entry["location"] for entry in entries} == {"encoder.weights.bin"}
        places[precision] = sorted((int(entry["offset"]), int(entry["length"])) for entry in entries)
    assert places["fp32"] == places["fp16"] and len(places["fp32"]) >= 2
    assert all(offset % 64 == 0 for offset, _ in places["fp32"])


def test_the_run_time_folds_the_casts_of_the_weights(small, tmp_path):
    _, folder, _ = small
    assert operators(folder / "encoder.fp32.onnx")["Cast"] >= 3
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(folder / "encoder.fp32.onnx", options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimised.onnx")["Cast"] == 1, "the one of the frames"


def test_graphs_find_their_weights_from_any_working_directory(small, tmp_path, monkeypatch):
    _, folder, exported = small
    (tmp_path / "copy").mkdir()
    for name in exported.files:
        (tmp_path / "copy" / name).write_bytes((folder / name).read_bytes())
    monkeypatch.chdir("/")
    frames = probe_frames(SIZE)
    copied = run(tmp_path / "copy" / "encoder.fp32.onnx", frames)
    np.testing.assert_array_equal(copied, run(folder / "encoder.fp32.onnx", frames))


def test_normalisations_and_reductions_stay_in_float32(small):
    model = onnx.shape_inference.infer_shapes(onnx.load(small[1] / "encoder.fp16.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    precision = {node.op_type: types[node.output[0]] for node in model.graph.node if node.op_type != "Cast"}
    assert precision["Conv"] == TensorProto.FLOAT16 and precision["Relu"] == TensorProto.FLOAT16
    for op in ("Div", "Sub", "ReduceMean", "LayerNormalization"):
        assert precision[op] == TensorProto.FLOAT, op


def test_no_batch_norm_and_no_batch_dependent_indices_are_left(small):
    found = operators(small[1] / "encoder.fp32.onnx")
    assert not {"BatchNormalization", "Gather", "Range", "Resize"} & set(found)


def test_nothing_of_the_machine_is_in_the_files(small):
    here = [str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), str(Path.home()), ".py"]
    for name in small[2].files[:2]:
        content = (small[1] / name).read_bytes()
        for text in here:
            assert text.encode() not in content, f"{text} in {name}"
        model = onnx.load(small[1] / name, load_external_data=False)
        assert not model.metadata_props and not model.doc_string
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)


def test_the_same_encoder_gives_the_same_bytes(small, tmp_path):
    again = export_encoder(make_encoder(Small(), 40), tmp_path, half_weights=True)
    for name in again.files:
        assert (tmp_path / name).read_bytes() == (small[1] / name).read_bytes(), name


def test_whole_weights_stay_in_the_graphs(tmp_path):
    encoder = make_encoder(Small(), 40)
    exported = export_encoder(encoder, tmp_path)
    assert exported.files == ["encoder.fp32.onnx", "encoder.fp16.onnx"]
    assert "rounding_min_cosine" not in exported.spec.parity
    frames = probe_frames(SIZE)
    encoder.eval()
    np.testing.assert_allclose(run(tmp_path / "encoder.fp32.onnx", frames), numpy_embed(encoder)(frames), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size", [("random:timm:vit_tiny_patch16_224", 64), ("random:vip:resnet18", 64), ("random:r3m:resnet50", 64)]
)
def test_real_architectures(name, size, tmp_path):
    exported = export_encoder(create_encoder(name, size=size), tmp_path, half_weights=True)
    assert exported.spec.parity["fp16_min_cosine"] > 0.9999
    for precision in ("fp32", "fp16"):
        check_tensorrt(tmp_path / f"encoder.{precision}.onnx")


class CubicResize(nn.Module):
    def forward(self, images):
        small = nn.functional.interpolate(images, (8, 8), mode="bicubic", antialias=True)
        return small.flatten(1)


def test_an_antialiased_resize_is_refused(tmp_path):
    with pytest.raises(TensorRTError, match=r"Resize.*(cubic|antialias)"):
        export_encoder(make_encoder(CubicResize(), 192), tmp_path)
    assert not (tmp_path / "bundle.json").exists()


def test_float16_overflow_is_noticed(tmp_path):
    """ONNX Runtime computes float16 graphs in float32 on a CPU; a GPU would overflow here, and so must the check."""
    with pytest.raises(ExportError, match="the fp16 graph has cosine nan"):
        export_encoder(make_encoder(Small(scale=1e5), 40), tmp_path)


def test_an_fp32_difference_is_noticed(tmp_path, monkeypatch):
    faithful = export._to_onnx

    def unfaithful(encoder):
        model = faithful(encoder)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("norm.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return model

    monkeypatch.setattr(export, "_to_onnx", unfaithful)
    with pytest.raises(ExportError, match=r"the fp32 graph differs from torch by \d\.\d\de-03"):
        export_encoder(make_encoder(Small(), 40), tmp_path)


def test_rounding_that_hurts_is_refused(tmp_path):
    # Features behind a layer norm add up to zero: what the ones of these weights give vanishes, and the rest of the
    # weights is finer than float16 near one.
    head = nn.Linear(40, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(1 + 2e-4 * torch.randn(4, 40))
    with pytest.raises(ExportError, match="weights rounded to float16 the cosine falls to"):
        export_encoder(make_encoder(nn.Sequential(Small(), head), 4), tmp_path, half_weights=True)


def test_folding_refuses_a_second_reader_and_large_values_are_named():
    with pytest.raises(FoldError, match="folding batch norm changed the answer"):
        fold_batch_norm(Small(shared=True), torch.randn(2, 3, SIZE, SIZE))
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, 1e5)
    with pytest.raises(FoldError, match=r"weight has a value of 1e\+05"):
        round_weights(network)


def test_folding_leaves_other_batch_norms():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5))
    images = torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(network, images)
    assert [type(module) for module in folded] == [type(module) for module in network]
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network.eval()(images))


def test_half_conversion_refuses_control_flow():
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"])], "b", [], [helper.make_tensor_value_info("a", 1, [2])]
    )
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)],
            "g",
            [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    with pytest.raises(half.HalfError, match=r"choice \(If\)"):
        half.to_half(model)


def test_half_keeps_an_infinite_limit_finite():
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Where", ["c", "x", "low"], ["y"], "mask")],
            "g",
            [helper.make_tensor_value_info("x", 1, [3])],
            [helper.make_tensor_value_info("y", 1, [3])],
            [numpy_helper.from_array(np.float32(-3.4e38), "low"), numpy_helper.from_array(np.array([True]), "c")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    # What reads the input before a product stays in float32, so there must be a product.
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "eye"], ["product"], "product"))
    model.graph.node[1].input[1] = "product"
    model.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "eye"))
    low = next(tensor for tensor in half.to_half(model).graph.initializer if tensor.name.startswith("low"))
    assert numpy_helper.to_array(low) == np.float16(-65504)


def test_the_weight_file_stores_equal_arrays_once(tmp_path):
    weights = graph.WeightFile()
    first = weights.add(np.arange(5, dtype=np.float16))
    second = weights.add(np.arange(7, dtype=np.float16))
    assert weights.add(np.arange(5, dtype=np.float16)) == first == (0, 10)
    assert second == (64, 14)
    weights.write(tmp_path / "w.bin")
    assert np.frombuffer((tmp_path / "w.bin").read_bytes()[64:], np.float16).tolist() == list(range(7))


def test_a_bundle_is_complete_and_is_not_overwritten_by_chance(tmp_path):
    encoder = make_encoder(Small(), 40)
    exported = export_encoder(encoder, tmp_path)
    (tmp_path / "goal.safetensors").write_bytes(b"goal")
    (tmp_path / "goal.png").write_bytes(b"picture")
    bundle = export_bundle(
        exported,
        tmp_path,
        name="small",
        reward=RewardSpec(name="uvd", parameters={"threshold": 0.2}),
        goal="goal.safetensors",
        other_files=["goal.png"],
        training={"data": "ten videos"},
        quality={"spearman": 0.5},
    )
    manifest = load_bundle(tmp_path).manifest
    assert manifest == bundle.manifest
    assert set(manifest.files) == {path.name for path in tmp_path.iterdir()} - {"bundle.json"}
    assert manifest.training["data"] == "ten videos" and manifest.training["weights"] == "test"
    assert manifest.software["torch"] == torch.__version__.partition("+")[0]
    card = (tmp_path / "README.md").read_text()
    for text in ("uvd, threshold = 0.2", "ten videos", "spearman", "`goal.safetensors`", "32 x 32"):
        assert text in card
    with pytest.raises(ExportError, match="there is a bundle already"):
        export_encoder(encoder, tmp_path)
    export_encoder(encoder, tmp_path, force=True)
    assert not (tmp_path / "bundle.json").exists(), "a folder without a manifest is not complete"
