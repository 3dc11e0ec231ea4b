"""A policy bundle: the actor that a robot runs, in one folder, every file with its hash; and how it is run.

policy.json      this module's schema
actor.onnx       observation in, action in [-1, 1] out
encoder.onnx     only where the observation is an embedding: uint8 NHWC frames in, float32 embeddings out
README.md        the card
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from v2r_core.deploy.folder import (
    BundleError,
    FileSpec,
    PreprocessSpec,
    Strict,
    check_files,
    describe_files,
    read_manifest,
    write_manifest_file,
)
from v2r_core.deploy.runtime import PROVIDERS, providers_here, session_options
from v2r_core.video.resize import Frame, Preprocess, resize_frame

MANIFEST = "policy.json"
ACTOR, ENCODER, CARD = "actor.onnx", "encoder.onnx", "README.md"
Observation = Literal["pixels", "embedding"]
Graph = Path | bytes


class PolicyError(RuntimeError):
    """The actor gave something that no robot may be told, such as a number that is not finite."""


class PolicyCheck(Strict):
    """A stored answer: after loading, the frames of `check_frames`, acted on one by one, must end in this action."""

    seed: int
    action: list[float] = Field(min_length=1)
    tolerance: float = Field(gt=0, description="largest absolute difference of one number of the action")


class PolicyManifest(Strict):
    """The content of `policy.json`."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    description: str
    software: dict[str, str] = Field(description="versions that wrote the bundle")
    observation: Observation
    preprocess: PreprocessSpec
    frame_stack: int = Field(ge=1, le=64)
    encoder: str | None = None
    actor: str
    action_dim: int = Field(ge=1, le=1024)
    rate: float = Field(gt=0, le=10_000, description="actions a second in training")
    check: PolicyCheck
    training: dict[str, str] = Field(default_factory=dict, description="data and recipe")
    quality: dict[str, float] = Field(default_factory=dict, description="measured, e.g. the success rate")
    files: dict[str, FileSpec]

    @model_validator(mode="after")
    def _fits_together(self) -> PolicyManifest:
        if (self.observation == "embedding") != (self.encoder is not None):
            raise ValueError(f"observation {self.observation!r} and encoder {self.encoder!r} exclude each other")
        if len(self.check.action) != self.action_dim:
            raise ValueError(f"the stored answer has {len(self.check.action)} numbers, action_dim is {self.action_dim}")
        return self


class PolicyBundle:
    """A policy bundle whose every file was found unchanged.

    Attributes:
        path: the folder.
        manifest: the validated `policy.json`.
        sha256: hash of `policy.json`, which holds all other hashes: the identity of the whole.
    """

    def __init__(self, path: Path, manifest: PolicyManifest, sha256: str) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256

    @property
    def preprocess(self) -> Preprocess:
        """What to do with a camera frame first."""
        return self.manifest.preprocess.preprocess()


def load_policy(path: str | Path) -> PolicyBundle:
    """Opens a policy bundle and checks every file against its hash.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: folder or file missing, hash wrong, a name that leaves the folder, or a schema not understood.
    """
    folder = Path(path).expanduser()
    manifest, sha256 = read_manifest(folder, MANIFEST, PolicyManifest, "policy")
    needed = {name for name in (manifest.actor, manifest.encoder) if name}
    check_files(folder, MANIFEST, manifest.files, needed, "policy")
    return PolicyBundle(folder, manifest, sha256)


def check_frames(seed: int, size: int, frame_stack: int) -> NDArray[np.uint8]:
    """The frames of the stored answer: one more than the stack holds, so that its order shows.

    Returns:
        uint8 (frame_stack + 1, size, size, 3), `numpy.random.default_rng(seed).integers(0, 256, ...)`.
    """
    return np.random.default_rng(seed).integers(0, 256, (frame_stack + 1, size, size, 3), dtype=np.uint8)


class Policy:
    """An actor that is ready to run: camera frames in, actions out. Not thread-safe: one thread at a time.

    Attributes:
        bundle: what it was made from.
        action_dim: A.
        rate: actions a second in training.
        provider: ONNX Runtime's name of the provider that runs the actor, as the session itself reports it.
    """

    def __init__(self, bundle: PolicyBundle, threads: int = 1, providers: Sequence[str] = ("auto",)) -> None:
        """Loads the graphs and compares one answer with the stored one.

        Args:
            bundle: a checked bundle.
            threads: threads of the CPU provider.
            providers: see `choose_providers`; TensorRT is left out, which gains nothing on networks of this size.

        Raises:
            ProviderError: see `choose_providers`.
            BundleError: a graph does not load, is for another size of image, stack or action than `policy.json` says,
                or does not give the stored answer.
        """
        manifest = bundle.manifest
        self.bundle, self.action_dim, self.rate = bundle, manifest.action_dim, manifest.rate
        size, stack = manifest.preprocess.size, manifest.frame_stack
        self._preprocess = bundle.preprocess
        self._encoder: _Network | None = None
        kind: str = "uint8"
        shape: tuple[int, ...] = (3 * stack, size, size)
        if manifest.encoder is not None:
            encoder = _Network(bundle.path / manifest.encoder, None, "embedding", threads, providers)
            encoder.expect("uint8", (size, size, 3))
            blank = np.zeros((1, size, size, 3), np.uint8)
            self._encoder, kind, shape = encoder, "float", (stack * encoder(blank).shape[1],)
        self._actor = _Network(bundle.path / manifest.actor, "observation", "action", threads, providers)
        self._actor.expect(kind, shape)
        self.provider = self._actor.provider
        self._stack: deque[NDArray[np.uint8] | NDArray[np.float32]] = deque(maxlen=stack)
        self._self_check()

    def reset(self) -> None:
        """Starts an episode: the next frame fills the whole stack."""
        self._stack.clear()

    def prepare(self, frame: Frame) -> Frame:
        """Resizes a camera frame, uint8 (H, W, 3), to what the policy sees, uint8 (S, S, 3)."""
        return resize_frame(frame, self._preprocess)

    def act(self, frame: Frame) -> NDArray[np.float32]:
        """Decides on one frame; those before it, back to `reset`, are remembered.

        Args:
            frame: uint8 RGB (H, W, 3), any size, `1 / rate` seconds after the one before.

        Returns:
            float32 (A,), clipped to [-1, 1].

        Raises:
            PolicyError: the actor gave something not finite, or another number of them.
            ValueError: the frame is none.
        """
        prepared = self.prepare(frame)
        row: NDArray[Any] = np.ascontiguousarray(prepared.transpose(2, 0, 1))
        if self._encoder is not None:
            row = self._encoder(np.ascontiguousarray(prepared)[None])[0]
        self._stack.extend([row] * (1 if self._stack else self._stack.maxlen or 1))
        action = self._actor(np.concatenate(tuple(self._stack))[None])[0]
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            text = f"the actor gave {action.tolist()}; {self.action_dim} finite numbers expected"
            raise PolicyError(f"{self.bundle.manifest.name}: {text}")
        clipped: NDArray[np.float32] = np.clip(action, -1, 1)
        return clipped

    def _self_check(self) -> None:
        manifest = self.bundle.manifest
        answer = self._answer(manifest.check.seed)
        worst = float(np.abs(answer - np.asarray(manifest.check.action)).max())
        if not worst <= manifest.check.tolerance:
            raise BundleError(
                f"{self.bundle.path}: self-check failed: {self.provider} differs from the stored action by "
                f"{worst:.2e}, {manifest.check.tolerance:.0e} allowed; try another provider, or export the policy again"
            )

    def _answer(self, seed: int) -> NDArray[np.float32]:
        self.reset()
        manifest = self.bundle.manifest
        frames = check_frames(seed, manifest.preprocess.size, manifest.frame_stack)
        try:
            answer = [self.act(frame) for frame in frames][-1]
        except PolicyError as error:
            raise BundleError(f"{self.bundle.path}: self-check failed: {error}; export the policy again") from error
        self.reset()
        return answer


class _Network:
    """One graph of one input and one output, the batch axis first."""

    def __init__(self, path: Path, given: str | None, taken: str, threads: int, providers: Sequence[str]) -> None:
        import onnxruntime  # noqa: PLC0415 (0.15 s and 60 MB that a reader of bundles does not need)

        names = providers_here(providers)
        chosen = [name for name in names if name != PROVIDERS["tensorrt"]]
        try:
            self._session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=chosen)
        except Exception as error:  # onnxruntime raises its own, undocumented types
            raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
        self.provider: str = self._session.get_providers()[0]
        inputs, outputs = self._session.get_inputs(), [item.name for item in self._session.get_outputs()]
        if len(inputs) != 1 or given not in (None, inputs[0].name) or taken not in outputs:
            text = f"input {[item.name for item in inputs]}, outputs {outputs}; {given or 'one'} and {taken} expected"
            raise BundleError(f"{path}: {text}; export the policy again")
        self._path, self._input, self._output = path, inputs[0], taken

    def expect(self, kind: str, shape: tuple[int, ...]) -> None:
        """Raises BundleError unless the input has this type, and this shape behind the batch axis."""
        declared = self._input.shape[1:]
        fixed = [found for found in zip(declared, shape, strict=False) if isinstance(found[0], int)]
        fits = len(declared) == len(shape) and all(found == wanted for found, wanted in fixed)
        if self._input.type != f"tensor({kind})" or not fits:
            raise BundleError(
                f"{self._path}: takes {self._input.type} of shape {tuple(declared)}, but image size, frame stack and "
                f"encoder of policy.json mean {kind} of shape {shape}; export the policy again"
            )

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run([self._output], {self._input.name: rows})[0]
        return result


def write_policy(
    folder: str | Path,
    *,
    name: str,
    description: str,
    actor: Graph,
    action_dim: int,
    rate: float,
    preprocess: Preprocess,
    frame_stack: int,
    encoder: Graph | None = None,
    expected: Sequence[float] | None = None,
    seed: int = 0,
    tolerance: float = 1e-3,
    training: Mapping[str, str] | None = None,
    quality: Mapping[str, float] | None = None,
) -> PolicyBundle:
    """Writes a policy bundle, `policy.json` last, and loads it to see that it works.

    Args:
        folder: is created; must not hold a policy yet.
        name: letters, digits, dot, dash, underscore.
        description: one line for the card.
        actor: ONNX file or its bytes; input `observation`, float32 (N, K * D) with an encoder, else uint8
            (N, 3K, S, S), oldest frame first; output `action`, float32 (N, A), in [-1, 1].
        action_dim: A.
        rate: actions a second in training.
        preprocess: what happens to a camera frame first.
        frame_stack: K.
        encoder: ONNX file or its bytes, uint8 (N, S, S, 3) to `embedding`, float32 (N, D); None: the actor sees pixels.
        expected: what another framework says to the frames of `check_frames(seed, S, K)`, acted on one by one after a
            reset: the action on the last one, (A,). None stores what ONNX Runtime gives here.
        seed: of those frames.
        tolerance: largest difference of one number that passes, here and on the robot.
        training: data and recipe, for the card.
        quality: measured numbers, for the card.

    Returns:
        The bundle.

    Raises:
        BundleError: there is a policy already, or the graphs do not do what the arguments say.
    """
    out = Path(folder)
    if (out / MANIFEST).exists():
        raise BundleError(f"{out}: there is a policy already; give another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    graphs = {ACTOR: actor} | ({ENCODER: encoder} if encoder is not None else {})
    for file, graph in graphs.items():
        if isinstance(graph, bytes):
            (out / file).write_bytes(graph)
        else:
            shutil.copyfile(graph, out / file)
    manifest = PolicyManifest(
        name=name,
        description=description,
        software={package: version(package) for package in ("v2r_ros", "onnxruntime", "numpy")},
        observation="pixels" if encoder is None else "embedding",
        preprocess=PreprocessSpec(**vars(preprocess)),
        frame_stack=frame_stack,
        encoder=None if encoder is None else ENCODER,
        actor=ACTOR,
        action_dim=action_dim,
        rate=rate,
        check=PolicyCheck(seed=seed, action=[0.0] * action_dim, tolerance=1e9),
        training=dict(training or {}),
        quality=dict(quality or {}),
        files={},
    )
    answer = Policy(PolicyBundle(out, manifest, ""), providers=("cpu",))._answer(seed).tolist()
    check = PolicyCheck(seed=seed, action=list(expected) if expected is not None else answer, tolerance=tolerance)
    _write_card(out, manifest)
    files = describe_files(out, [*graphs, CARD])
    manifest = PolicyManifest.model_validate({**manifest.model_dump(), "check": check, "files": files})
    Policy(PolicyBundle(out, manifest, ""), providers=("cpu",))
    write_manifest_file(out, MANIFEST, manifest)
    return load_policy(out)


def _write_card(folder: Path, manifest: PolicyManifest) -> None:
    frame, stack = manifest.preprocess, manifest.frame_stack
    seen = "pixels" if manifest.encoder is None else f"embeddings of `{manifest.encoder}`"
    lines = [f"# {manifest.name}", "", manifest.description, "", "| | |", "|---|---|"]
    lines.append(f"| observation | {seen}, the last {stack} frames at {frame.size} x {frame.size} pixels |")
    lines.append(f"| action | {manifest.action_dim} numbers in [-1, 1], {manifest.rate:.4g} a second |")
    lines += [f"| {key} | {value} |" for key, value in manifest.training.items()]
    lines += [f"| {key} | {value:.4g} |" for key, value in manifest.quality.items()]
    lines += ["", "Loading checks the sha256 of every file: edit nothing here, export again.", ""]
    (folder / CARD).write_text("\n".join(lines))
