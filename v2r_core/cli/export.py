"""`v2r export`: an encoder as a bundle that a robot can load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from v2r_core.deploy.bundle import Bundle, RewardSpec, reward_spec
from v2r_core.deploy.export import export_bundle, export_encoder
from v2r_core.deploy.export_networks import export_networks
from v2r_core.encoders.encoder import Encoder
from v2r_core.encoders.zoo import DEFAULT_ENCODER, create_encoder, identify_weights
from v2r_core.rl.options import Checkpoint
from v2r_core.video.resize import ResizeMode

if TYPE_CHECKING:
    from v2r_core.methods.method import RewardExport


@dataclass(frozen=True)
class Export:
    """Writes an encoder as ONNX graphs, in float32 and mixed float16, measured against torch, with hashes and card."""

    encoder: Annotated[str, tyro.conf.Positional] = DEFAULT_ENCODER
    """Name of the encoder (`v2r models` lists them), the folder of a run of `v2r train`, or the path of a checkpoint
    that the authors of VIP, R3M, MoCo, SimCLR, DINO, DINOv2, MAE, I-JEPA or V-JEPA released."""
    out: Path = Path("bundle")
    """Folder to write the bundle to."""
    weights: Path | None = None
    """File with the weights: a VIP or R3M checkpoint, or a state dict for `timm:<model>`."""
    half_weights: bool = False
    """Round the weights to float16 and share them between both graphs: a third of the size."""
    reward: Literal["learned", "vip", "uvd"] = "learned"
    """Reward that the robot computes: what the run has learned, vip where it has learned an encoder only; or distance
    (vip) or staged distance (uvd) to a goal, which is set at run time."""
    name: str | None = None
    """Name of the bundle; by default the encoder's."""
    size: int | None = None
    """Side of the encoder's input in pixels; by default the one that the weights were trained at."""
    mode: ResizeMode | None = None
    """How frames become square; by default as the encoder's authors did it, or `squash`."""
    seed: int = 0
    """Seed of the weights of `random:<name>`."""
    force: bool = False
    """Overwrite a bundle that is there."""
    rate: float | None = None
    """Of a policy: actions a second; by default as in training."""
    checkpoint: Checkpoint = "best"
    """Of a policy: `best`, with the most successes in an evaluation, or `newest`."""

    def run(self) -> int:
        """Exports, checks and reports.

        Raises:
            ValueError: unknown encoder, weights that do not fit, or an export that is not faithful.
        """
        console = Console()
        if _is_policy(Path(self.encoder).expanduser()):
            return self._export_policy(console)
        with console.status(f"exporting {self.encoder}"):
            encoder, learned = self._encoder()
            exported = export_encoder(encoder, self.out, self.half_weights, self.force)
            called = self.name or encoder.name.replace(":", "-")
            if learned is None or self.reward != "learned":
                spec, parts = RewardSpec(name="vip" if self.reward == "learned" else self.reward), None
            else:
                spec = reward_spec(learned.name, learned.parameters, _rate_of(Path(self.encoder)))
                parts = export_networks(learned.networks, learned.tensors, self.out)
            bundle = export_bundle(exported, self.out, name=called, reward=spec, learned=parts)
        console.print(_report(bundle))
        return 0

    def _export_policy(self, console: Console) -> int:
        # Simulators and agents are needed for policies only.
        from v2r_core.rl.export import export_policy  # noqa: PLC0415

        with console.status(f"exporting {self.encoder}"):
            policy = export_policy(self.encoder, self.out, rate=self.rate, name=self.name, which=self.checkpoint)
        manifest = policy.manifest
        console.print(f"{policy.path}: {manifest.action_dim} actions at {manifest.rate:.4g} Hz")
        console.print(f"next: ros2 run v2r_ros policy_node --ros-args -p model:={policy.path}")
        return 0

    def _encoder(self) -> tuple[Encoder, RewardExport | None]:
        name, weights = self.encoder, self.weights
        path = Path(name).expanduser()
        if (path / "run.json").is_file():
            if weights is not None or self.size is not None or self.mode is not None:
                raise ValueError(
                    f"{path}: a run has its own weights, size and mode; leave --weights, --size, --mode away"
                )
            # The methods and the trainer are needed for runs only.
            from v2r_core.training.checkpoint import load_run  # noqa: PLC0415

            return load_run(path)
        if weights is None and path.is_file():
            name, weights = identify_weights(path), path
        return create_encoder(name, weights, seed=self.seed, size=self.size, mode=self.mode), None


def _is_policy(run: Path) -> bool:
    if not (run / "run.json").is_file():
        return False
    from v2r_core.methods.runs import read_run  # noqa: PLC0415
    from v2r_core.rl.options import METHOD  # noqa: PLC0415

    return read_run(run).get("method") == METHOD


def _rate_of(run: Path) -> float | None:
    """Frames a second of the videos of a run."""
    # The methods are needed for runs only.
    from v2r_core.methods.runs import read_run  # noqa: PLC0415

    fps: float | None = read_run(run).get("fps")
    return fps


def _report(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    table = Table(title=f"{manifest.name}: {bundle.path}", show_header=False)
    total = 0
    for name, spec in manifest.files.items():
        table.add_row(name, f"{spec.bytes / 1e6:.2f} MB", spec.sha256[:12])
        total += spec.bytes
    table.add_row("together", f"{total / 1e6:.2f} MB", "", end_section=True)
    for key, value in manifest.encoder.parity.items():
        table.add_row(key, f"{value:.7g}", "")
    for key, network in manifest.networks.items():
        table.add_row(f"{key}, error", f"{network.error:.7g}", "")
    return table
