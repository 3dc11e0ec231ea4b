"""VIPER: a tokenizer's run first, then the transformer on its codes; what is averaged, exported and loaded again."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from v2r_core.encoders.checkpoints import CheckpointError
from v2r_core.encoders.encoder import numpy_embed
from v2r_core.methods import METHODS, load_method
from v2r_core.methods.method import Horizon
from v2r_core.methods.runs import method_of_run
from v2r_core.methods.viper import Viper, ViperRecipe
from v2r_core.methods.vqgan import VQGANMethod, VQGANRecipe
from v2r_core.nn.video_gpt import ClassNorm, VideoGPT, VideoGPTConfig, split_channels
from v2r_core.rewards.viper import ViperReward
from v2r_core.training.loop import train
from v2r_core.training.options import RunOptions

HORIZON = Horizon(steps_per_epoch=10, epochs=4, batch_size=8, examples=80)
OPTIONS = RunOptions(workers=0, cpu=True, stop_after=2)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Both methods under their names, whether or not the list has them yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "vqgan", "v2r_core.methods.vqgan:VQGANMethod")
        patch.setitem(METHODS, "viper", "v2r_core.methods.viper:Viper")
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of a bright column that walks to the right, 24 frames each."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for frame in range(24):
                picture = np.full((32, 32, 3), 40 + 60 * number, np.uint8)
                picture[:, frame : frame + 8] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module", params=["tiny", "tiny-diffusion-reward"])
def tokenizer(request, registered, videos, tmp_path_factory):
    channels = (8, 16, 16) if request.param == "tiny" else (32, 32, 32)
    recipe = dataclasses.replace(
        VQGANRecipe.presets()[request.param],
        size=16,
        channels=channels,
        latent=8,
        codes=16,
        batch_size=8,
        adversarial_weight=0.0,
    )
    return train("vqgan", recipe, [videos], tmp_path_factory.mktemp("run") / "vqgan", OPTIONS)


def toy_recipe(tokenizer, **changes):
    sizes = {"width": 24, "heads": 2, "layers": 2, "mlp": 48, "batch_size": 8, "frames": 3, "lr": 3e-3}
    return dataclasses.replace(ViperRecipe.tiny(), tokenizer=str(tokenizer), **{**sizes, **changes})


def toy_method(tokenizer, **changes):
    torch.manual_seed(0)
    method = Viper(toy_recipe(tokenizer, **changes), HORIZON)
    method.begin()
    return method


def batch_of(method, count=8, seed=0):
    """Codes that count upwards, so that each is determined by the one before it."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 16, (count, 1), generator=generator)
    length = method.recipe.frames * method.tokenizer.grid**2
    codes = ((first + torch.arange(length)) % 16).reshape(count, method.recipe.frames, -1).float()
    distances = torch.rand(count, method.recipe.frames, 1, generator=generator)
    return {"features": torch.cat([codes, distances], dim=2)}


def fit(method, steps, batch=None):
    optimizer = method.optimizer()
    method.train()
    for step in range(steps):
        outcome = method(batch or batch_of(method, seed=step), step)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        method.after_step(step)
    return outcome


def test_training_learns_what_comes_next(tokenizer):
    method = toy_method(tokenizer)
    before = float(method(batch_of(method), 0).loss.detach())
    assert before == pytest.approx(np.log(16), abs=0.5)
    after = fit(method, 120)
    assert float(after.loss.detach()) < 0.5 * before
    assert float(after.metrics["accuracy"]) > 0.5
    length = method.tokenizer.grid**2
    assert float(after.metrics["nats_per_frame"]) == pytest.approx(float(after.loss.detach()) * length, rel=1e-5)


def test_only_the_transformer_is_trained(tokenizer):
    method = toy_method(tokenizer)
    frozen = {name: value.clone() for name, value in method.tokenizer.state_dict().items()}
    fit(method, 2)
    method(batch_of(method), 2).loss.backward()
    for name, weight in method.named_parameters():
        assert weight.requires_grad == name.startswith("model."), name
        assert (weight.grad is not None) == name.startswith("model."), name
    assert all(torch.equal(frozen[name], value) for name, value in method.tokenizer.state_dict().items())
    assert method.training
    assert not method.average.training
    assert not method.tokenizer.training


def test_the_average_follows(tokenizer):
    method = toy_method(tokenizer, ema=0.5)
    start = method.average.start.clone()
    with torch.no_grad():
        method.model.start.add_(1.0)
    method.after_step(0)
    torch.testing.assert_close(method.average.start, 0.1 * start + 0.9 * method.model.start.detach())
    start = method.average.start.clone()
    with torch.no_grad():
        method.model.start.add_(1.0)
    method.after_step(1000)
    torch.testing.assert_close(method.average.start, 0.5 * start + 0.5 * method.model.start.detach())


def test_the_tokenizer_is_that_of_its_run(tokenizer):
    method, source = toy_method(tokenizer), method_of_run(tokenizer)
    assert type(method.tokenizer) is type(source.tokenizer)
    for ours, theirs in zip(method.tokenizer.parameters(), source.tokenizer.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    part = method.frozen()
    frames = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    rows = part.apply(frames)
    assert rows.shape == (3, 17)
    with torch.no_grad():
        codes, _, _ = source.tokenizer.quantize(source.tokenizer.encode(frames.permute(0, 3, 1, 2) / 127.5 - 1))
    assert torch.equal(rows[:, :-1].long(), codes)
    with torch.no_grad():
        method.tokenizer.codebook.add_(1.0)
    assert part.name != method.frozen().name


def test_a_run_can_be_trained_resumed_and_loaded_from_another_folder(tokenizer, videos, tmp_path, monkeypatch):
    recipe = toy_recipe(tokenizer, stride=1)
    monkeypatch.chdir(Path(tokenizer).parent)
    run = train(
        "viper", dataclasses.replace(recipe, tokenizer=Path(tokenizer).name), [videos], tmp_path / "viper", OPTIONS
    )
    monkeypatch.chdir(tmp_path)
    assert list(run.glob("picture-*.png"))
    train("viper", recipe, [videos], run, dataclasses.replace(OPTIONS, resume=True, stop_after=3))
    loaded = method_of_run(run)
    assert isinstance(loaded, Viper)
    assert loaded.recipe == recipe
    source = method_of_run(tokenizer)
    assert torch.equal(loaded.tokenizer.codebook, source.tokenizer.codebook)
    assert float(loaded.distances.moments[0]) == 3 * 8 * 3
    assert loaded.distances.threshold > 0


def test_the_exported_reward_scores_frames(tokenizer):
    method = toy_method(tokenizer)
    fit(method, 3)
    export = method.reward_export()
    assert export.name == "viper"
    assert export.parameters == {"frames": 3, "stride": 2, "mode": "joint", "classes": 0}
    likelihood = export.networks["likelihood"]
    assert likelihood.output == "log_prob"
    assert {name: tuple(value.shape) for name, value in likelihood.inputs.items()} == {"codes": (2, 3, 16)}

    def network(codes):
        with torch.inference_mode():
            return likelihood.module(torch.from_numpy(codes)).numpy()

    tensors = {**export.tensors, "quantization_threshold": np.array(1e6, np.float32)}
    reward = ViperReward(numpy_embed(method.encoder()), {"likelihood": network}, tensors, **export.parameters)
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    curve = reward.score(frames)
    rows = method.frozen().apply(torch.from_numpy(frames))
    codes = rows[:, :-1].long()
    with torch.inference_mode():
        logits = method.average(method.tokenizer.codebook[codes[None, 3:8:2]])
    chosen = logits.log_softmax(dim=-1)[0].gather(-1, codes[3:8:2, :, None])
    assert curve.raw_reward[7] == pytest.approx(float(chosen.sum()), abs=1e-3)
    assert np.isnan(curve.reward[:4]).all()
    assert np.isfinite(curve.reward[4:]).all()
    assert float(export.tensors["quantization_threshold"]) > 0


def test_the_paper_scores_the_newest_frame_and_decays_nothing(tokenizer):
    method = toy_method(tokenizer, compat="paper")
    fit(method, 1)
    assert method.reward_export().parameters["mode"] == "conditional"
    assert method.schedule(0) == {"lr": 3e-3, "weight_decay": 0.0}
    assert toy_method(tokenizer).schedule(0)["weight_decay"] == 1e-4


def test_no_threshold_before_training(tokenizer):
    with pytest.raises(ValueError, match="train first"):
        toy_method(tokenizer).reward_export()


def test_classes(tokenizer):
    method = toy_method(tokenizer, classes=3)
    batch = batch_of(method)
    with pytest.raises(ValueError, match="classes is 3, and labels are missing"):
        method(batch, 0)
    with pytest.raises(ValueError, match="label 3 with 3 classes"):
        method({**batch, "labels": torch.full((8,), 3)}, 0)
    with pytest.raises(ValueError, match="classes is 0, and labels are given"):
        toy_method(tokenizer)({**batch, "labels": torch.zeros(8, dtype=torch.int64)}, 0)
    fit(method, 2, {**batch, "labels": torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])})
    first = method({**batch, "labels": torch.zeros(8, dtype=torch.int64)}, 0).loss
    assert not torch.equal(first, method({**batch, "labels": torch.ones(8, dtype=torch.int64)}, 0).loss)
    export = method.reward_export()
    assert export.parameters["classes"] == 3
    assert set(export.networks["likelihood"].inputs) == {"codes", "label"}


def test_the_picture_has_windows_over_predictions(tokenizer):
    method = toy_method(tokenizer)
    batch = batch_of(method)
    picture = method.picture(batch)
    assert picture.shape == (2 * 16 * 4, 16 * 3, 3)
    assert picture.dtype == np.uint8
    codes = batch["features"][0, 1, :-1].long()[None]
    with torch.no_grad():
        frame = ((method.tokenizer.decode_codes(codes)[0] + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 0)
    np.testing.assert_allclose(picture[:16, 16:32].astype(int), frame.numpy(), atol=1)


def test_the_graph_of_the_likelihood(tokenizer, tmp_path):
    import onnxruntime

    method = toy_method(tokenizer, classes=3)
    fit(method, 1, {**batch_of(method), "labels": torch.zeros(8, dtype=torch.int64)})
    part = method.reward_export().networks["likelihood"]
    rows = torch.export.Dim("batch")
    program = torch.onnx.export(
        part.module,
        tuple(part.inputs.values()),
        dynamo=True,
        opset_version=18,
        input_names=list(part.inputs),
        output_names=[part.output],
        dynamic_shapes={name: {0: rows} for name in part.inputs},
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    codes = batch_of(method, 5)["features"][..., :-1].long()
    labels = torch.tensor([0, 1, 2, 1, 0])
    (found,) = session.run(None, {"codes": codes.numpy(), "label": labels.numpy()})
    with torch.inference_mode():
        expected = part.module(codes, labels)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_a_tokenizer_that_is_none(tmp_path, tokenizer, videos):
    with pytest.raises(ValueError, match="name its folder as tokenizer"):
        Viper(ViperRecipe.tiny(), HORIZON)
    with pytest.raises(CheckpointError, match=r"no run\.json in it"):
        Viper(toy_recipe(tmp_path), HORIZON)
    run = train("viper", toy_recipe(tokenizer), [videos], tmp_path / "viper", OPTIONS)
    with pytest.raises(ValueError, match="a run with a ViperRecipe; give a run of vqgan"):
        Viper(toy_recipe(run), HORIZON)


def test_weights_do_not_depend_on_the_tokenizers_size(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from v2r_core.methods.viper import _fresh_tokenizer

    _fresh_tokenizer(str(tokenizer))
    assert torch.equal(torch.rand(3), expected)


def test_the_encoder_becomes_a_graph_that_agrees_on_a_blank_wall_too(tmp_path):
    from v2r_core.deploy.export import export_encoder

    torch.manual_seed(0)
    sizes = {"size": 32, "channels": (8, 16), "latent": 8, "codes": 16}
    method = VQGANMethod(dataclasses.replace(VQGANRecipe.tiny(), **sizes), HORIZON)
    exported = export_encoder(method.encoder(), tmp_path)
    assert exported.spec.parity["fp32_max_rel_error"] < 2e-5
    assert exported.spec.embedding_dim == 16 * 16 * 8


@pytest.mark.parametrize("preset", ViperRecipe.presets())
def test_presets(preset):
    recipe = ViperRecipe.presets()[preset]
    spec = Viper.data(recipe)
    assert (spec.frames, spec.stride) == (recipe.frames, recipe.stride)
    assert load_method("viper").recipe_type is ViperRecipe
    assert recipe.width % recipe.heads == 0


def small_gpt(**changes):
    torch.manual_seed(0)
    sizes = {"frames": 3, "grid": 2, "codes": 5, "code_dim": 4, "width": 12, "heads": 2, "layers": 2, "mlp": 16}
    return VideoGPT(VideoGPTConfig(**{**sizes, **changes}))


def test_a_token_depends_on_those_before_it_only():
    network = small_gpt().eval()
    vectors = torch.randn(1, 3, 4, 4)
    before = network(vectors)
    changed = vectors.clone()
    changed[0, 1, 2] += 1.0
    difference = (network(changed) - before).abs().amax(dim=-1).flatten()
    difference = difference.detach()
    assert float(difference[:7].max()) == 0
    assert float(difference[7:].min()) > 0


def test_a_shorter_window_is_the_start_of_a_longer_one():
    network = small_gpt(classes=2).eval()
    vectors, labels = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    torch.testing.assert_close(network(vectors[:, :2], labels), network(vectors, labels)[:, :2])


def test_dropout_is_for_training_only():
    network, vectors = small_gpt(dropout=0.5), torch.randn(2, 3, 4, 4)
    assert not torch.equal(network(vectors), network(vectors))
    network.eval()
    assert torch.equal(network(vectors), network(vectors))


def test_a_class_of_its_own_is_a_plain_norm():
    norm, tokens = ClassNorm(6, 3), torch.randn(2, 4, 6)
    plain = torch.nn.functional.layer_norm(tokens, (6,), eps=1e-6)
    torch.testing.assert_close(norm(tokens, torch.zeros(2, 3)), plain)
    chosen = norm(tokens, torch.eye(3)[:2])
    expected = plain * (1 + norm.class_scale[:2, None]) + norm.class_bias[:2, None]
    torch.testing.assert_close(chosen, expected)


def test_channels_are_split_evenly():
    assert split_channels(256, 3) == [86, 85, 85]
    assert split_channels(33, 3) == [11, 11, 11]


def test_sizes_out_of_range():
    with pytest.raises(ValueError, match="width is 13"):
        small_gpt(width=13)
    with pytest.raises(ValueError, match="classes is -1"):
        small_gpt(classes=-1)
    with pytest.raises(ValueError, match="labels missing, but the network has 2 classes"):
        small_gpt(classes=2)(torch.randn(1, 3, 4, 4))
