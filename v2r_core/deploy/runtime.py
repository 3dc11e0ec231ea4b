"""Runs a bundle's encoder with ONNX Runtime and says which provider really does the work."""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2r_core.deploy.bundle import Bundle, NetworkSpec, Precision
from v2r_core.deploy.folder import BundleError
from v2r_core.deploy.gpu import gpu_name, tensorrt_version

_log = logging.getLogger(__name__)

PROVIDERS: Mapping[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
WARM_UP_RUNS = 10


class ProviderError(RuntimeError):
    """A provider that was asked for by name cannot run here; the message says what can."""


def engine_cache_root() -> Path:
    """Folder of TensorRT engines, readable by this user only (an engine is code: whoever writes it runs on the robot).

    Raises:
        ProviderError: the folder belongs to somebody else, is a link, or cannot be made private.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = base / "v2r" / "engines"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = root.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ProviderError(f"{root} must be a folder of this user; remove it or set XDG_CACHE_HOME")
    if stat.S_IMODE(info.st_mode) != 0o700:
        root.chmod(0o700)
    return root


def engine_key(bundle: Bundle, precision: Precision) -> str:
    """Name of the cache folder of one engine: model, precision, GPU and TensorRT version.

    An engine that was built for another of any of these either fails to load or is silently slow, so none is shared.
    """
    manifest = bundle.manifest
    graph = manifest.files[manifest.encoder.graphs[precision]].sha256
    weights = "".join(spec.sha256 for name, spec in sorted(manifest.files.items()) if name.endswith(".bin"))
    parts = [graph[:16], weights[:16], precision, gpu_name(), f"trt{tensorrt_version()}"]
    return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in part) for part in parts if part)


def choose_providers(wanted: Sequence[str], available: Sequence[str]) -> list[str]:
    """Turns parameter values into ONNX Runtime's provider names, best first, CPU always last.

    Args:
        wanted: names out of `tensorrt`, `cuda`, `cpu`, in order of preference, or only `auto` for all that there are.
        available: what this build of ONNX Runtime offers.

    Raises:
        ProviderError: a name is unknown, or a named provider is not in this build.
    """
    if list(wanted) == ["auto"]:
        return [name for name in PROVIDERS.values() if name in available]
    chosen = []
    for name in wanted:
        if name not in PROVIDERS:
            raise ProviderError(f"provider {name!r} is unknown; use auto, or a list out of {sorted(PROVIDERS)}")
        if PROVIDERS[name] not in available:
            raise ProviderError(
                f"provider {name!r} is not in this build of onnxruntime, which has {list(available)}; "
                "install onnxruntime-gpu, or ask for cpu"
            )
        chosen.append(PROVIDERS[name])
    if PROVIDERS["cpu"] not in chosen:
        chosen.append(PROVIDERS["cpu"])
    return chosen


def providers_here(wanted: Sequence[str]) -> list[str]:
    """`choose_providers` of the installed ONNX Runtime: `auto` without a TensorRT that is not there.

    The CUDA libraries of pip's packages are loaded on the way: `onnxruntime-gpu[cuda,cudnn]` brings them into a folder
    where the system does not look.

    Raises:
        ProviderError: see `choose_providers`.
    """
    import onnxruntime  # noqa: PLC0415 (0.15 s and 60 MB that a reader of bundles does not need)

    names = choose_providers(wanted, onnxruntime.get_available_providers())
    if list(wanted) == ["auto"] and PROVIDERS["tensorrt"] in names and not tensorrt_version():
        # onnxruntime-gpu names TensorRT whether or not it is installed, and complains at length when it is not.
        names.remove(PROVIDERS["tensorrt"])
    if names[0] != PROVIDERS["cpu"] and hasattr(onnxruntime, "preload_dlls"):
        said = io.StringIO()
        with redirect_stdout(said):  # it prints what it does not find, which may still be found elsewhere
            onnxruntime.preload_dlls()
        if said.getvalue():
            _log.debug("onnxruntime: %s", said.getvalue())
    return names


class Session:
    """An encoder that is ready to run: uint8 frames in, float32 embeddings out.

    Attributes:
        provider: ONNX Runtime's name of the provider that runs the graph, as the session itself reports it.
        precision: precision of the graph that runs.
        embedding_dim: D.
        size: S, side of the input in pixels.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision | None = None,
        providers: Sequence[str] = ("auto",),
        threads: int = 1,
        batch: int = 1,
    ) -> None:
        """Loads the graph.

        Args:
            bundle: a checked bundle.
            precision: which graph; None takes fp16 on a GPU and fp32 on a CPU (whose fp16 kernels are slow), as far
                as the bundle has them.
            providers: see `choose_providers`.
            threads: threads of the CPU provider; more than one only pays when cores are idle.
            batch: largest batch that a TensorRT engine is built for.

        Raises:
            ProviderError: see `choose_providers`.
            BundleError: the graph does not load or does not have the documented input and output.
        """
        names = providers_here(providers)
        chosen: Precision = precision or ("fp32" if names[0] == PROVIDERS["cpu"] else "fp16")
        if precision is None and chosen not in bundle.manifest.encoder.graphs:
            chosen = next(iter(bundle.manifest.encoder.graphs))
        self.size = bundle.manifest.encoder.preprocess.size
        self.embedding_dim = bundle.manifest.encoder.embedding_dim
        self._check = bundle.manifest.check
        graph = bundle.graph(chosen)
        with _heartbeat(f"{graph.name}: {names[0]} is still preparing (a TensorRT engine can take minutes)"):
            self._session = self._open(bundle, chosen, names, threads, batch)
            self.provider: str = self._session.get_providers()[0]
            if self.provider != names[0]:
                _log.warning("%s was asked for but %s runs; `v2r doctor` says why", names[0], self.provider)
                if precision is None and self.provider == PROVIDERS["cpu"] and "fp32" in bundle.manifest.encoder.graphs:
                    chosen, graph = "fp32", bundle.graph("fp32")
                    self._session = self._open(bundle, chosen, [self.provider], threads, batch)
            self.precision: Precision = chosen
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(uint8)":
                raise BundleError(f"{graph}: one uint8 input and one output expected; export the bundle again")
            self._input, self._output = inputs[0].name, outputs[0].name
            self.self_check()

    def _open(self, bundle: Bundle, precision: Precision, names: Sequence[str], threads: int, batch: int) -> Any:
        import onnxruntime  # noqa: PLC0415 (0.15 s and 60 MB that a reader of bundles does not need)

        graph = bundle.graph(precision)
        specs = [(name, self._provider_options(name, bundle, precision, batch)) for name in names]
        try:
            return onnxruntime.InferenceSession(str(graph), session_options(threads), providers=specs)
        except Exception as error:  # onnxruntime raises its own, undocumented types
            raise BundleError(f"{graph}: onnxruntime cannot load it: {error}") from error

    def _provider_options(self, name: str, bundle: Bundle, precision: Precision, batch: int) -> dict[str, Any]:
        if name != PROVIDERS["tensorrt"]:
            return {}
        root = engine_cache_root()
        folder = root / engine_key(bundle, precision)
        folder.mkdir(mode=0o700, exist_ok=True)
        shape = f"{self.size}x{self.size}x3"
        return {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder),
            "trt_profile_min_shapes": f"frames:1x{shape}",
            "trt_profile_opt_shapes": f"frames:1x{shape}",
            "trt_profile_max_shapes": f"frames:{batch}x{shape}",
        }

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds frames.

        Args:
            frames: uint8 RGB, shape (N, S, S, 3), contiguous.

        Returns:
            float32, shape (N, D).
        """
        result: NDArray[np.float32] = self._session.run([self._output], {self._input: frames})[0]
        return result

    def self_check(self) -> float:
        """Compares one inference with the answer that the bundle stores.

        Returns:
            Largest difference over the norm of the embedding.

        Raises:
            BundleError: it is above the tolerance: this machine, provider or file computes something else.
        """
        rng = np.random.default_rng(self._check.seed)
        image = rng.integers(0, 256, (1, self.size, self.size, 3), dtype=np.uint8)
        found = self(image)[0]
        head = np.asarray(self._check.embedding_head)
        norm = max(self._check.embedding_norm, 1e-12)
        worst = float(np.abs(found[: len(head)] - head).max()) / norm
        worst = max(worst, abs(float(np.linalg.norm(found)) - norm) / norm)
        tolerance = self._check.tolerance if self.precision == "fp32" else self._check.tolerance_fp16
        if not worst <= tolerance:
            raise BundleError(
                f"self-check failed: {self.provider} in {self.precision} differs from the stored answer by "
                f"{worst:.2e}, {tolerance:.0e} allowed; try another provider or precision, or export the bundle again"
            )
        return worst

    def warm_up(self, batch: int = 1) -> float:
        """Runs a few times on noise, so that no camera frame pays for lazy initialisation.

        Returns:
            Median milliseconds of a run.
        """
        frames = np.random.default_rng(0).integers(0, 256, (batch, self.size, self.size, 3), dtype=np.uint8)
        times = []
        for _ in range(WARM_UP_RUNS):
            start = time.perf_counter()
            self(frames)
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e3


class NetworkSession:
    """A network that a learned reward runs besides the encoder: named arrays in, one array out.

    Args:
        bundle: a checked bundle.
        name: which of its networks.
        providers: see `choose_providers`; TensorRT is left out, for which integer inputs would need profiles of
            their own.
        threads: threads of the CPU provider.

    Raises:
        ProviderError: see `choose_providers`.
        BundleError: the graph does not load, has other inputs, or gives another answer than the stored one.
    """

    def __init__(self, bundle: Bundle, name: str, providers: Sequence[str] = ("auto",), threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 (as in Session)

        spec = bundle.manifest.networks[name]
        graph = bundle.path / spec.graph
        chosen = providers_here(providers)
        options = session_options(threads)
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=[p for p in chosen if p != PROVIDERS["tensorrt"]]
            )
        except Exception as error:  # onnxruntime raises its own, undocumented types
            raise BundleError(f"{graph}: onnxruntime cannot load it: {error}") from error
        found = {item.name for item in self._session.get_inputs()}
        if found != set(spec.inputs):
            raise BundleError(f"{graph}: inputs {sorted(found)}, {sorted(spec.inputs)} expected; export again")
        self._output = spec.output
        self._check(graph, spec)

    def __call__(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """Runs the network; every input has the batch axis first."""
        result: NDArray[Any] = self._session.run([self._output], inputs)[0]
        return result

    def _check(self, graph: Path, spec: NetworkSpec) -> None:
        found = self(**spec.example()).ravel()[: len(spec.answer)].astype(np.float64)
        answer = np.asarray(spec.answer)
        worst = float(np.abs(found - answer).max() / max(float(np.abs(answer).max()), 1e-12))
        if not worst <= spec.tolerance:
            raise BundleError(
                f"{graph}: differs from the stored answer by {worst:.2e}, {spec.tolerance:.0e} allowed; "
                "try another provider, or export the bundle again"
            )


def session_options(threads: int) -> Any:
    """Options of an onnxruntime session for a robot: so many threads, and none that spins."""
    import onnxruntime  # noqa: PLC0415 (as in Session)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning worker thread burns a core of the robot between two frames and gains nothing at camera rate.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextmanager
def _heartbeat(message: str, every: float = 10.0) -> Iterator[None]:
    """Logs a line while something takes longer than it should look silent."""
    done = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            _log.warning("%s: %.0f s", message, time.monotonic() - start)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
