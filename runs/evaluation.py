"""`sparse-agents evaluate`: how good a trained agent is, in figures and on film."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.failure import UserError
from runs.files import writing
from runs.options import Evaluate

if TYPE_CHECKING:
    from runs.settings import Settings


def evaluate(options: Evaluate) -> int:
    """Print mean, spread and range of the returns of fresh episodes."""
    if options.episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {options.episodes}")
    if options.seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {options.seed}")
    if options.video is not None:
        _prepare_video(options.video)
    from rich.console import Console

    from runs.loading import load_agent
    from runs.scoring import Scorer
    from sparse_core import meters

    model, settings, step = load_agent(options.directory, options.step)
    scorer = Scorer(settings.env, options.episodes, options.seed, settings.noise)
    try:
        score = scorer.score(model, step)
    finally:
        scorer.close()
    console = Console(highlight=False)
    console.print(
        f"{settings.env}, step {step:,}, actor with {meters.nnz(model.actor):,} connections "
        f"(sparsity {meters.sparsity(model.actor):.4f}):"
    )
    console.print(
        f"return {score.mean:,.1f} ± {score.std:,.1f} over {len(score.returns)} episodes "
        f"(from {min(score.returns):,.1f} to {max(score.returns):,.1f}), seed {options.seed}"
    )
    if options.video is not None:
        frames = film(model, settings, step, options.seed, options.video)
        console.print(f"{frames} frames in {options.video}")
    return 0


def _prepare_video(path: Path) -> None:
    """Refuse what cannot become a film, and choose a way to render off screen before MuJoCo is imported."""
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"`video` must end in .mp4, got {str(path)!r}")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: its directory does not exist; create it first")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")


def film(model: Any, settings: Settings, step: int, seed: int, path: Path) -> int:
    """Render one episode off screen into an H.264 .mp4 file; the number of frames."""
    import imageio_ffmpeg
    import numpy as np

    import envs
    from runs.scoring import hold_places

    environment = envs.make(settings.env, seed=seed, render_mode="rgb_array", noise=settings.noise)
    hold_places(environment, step)
    frames = 0
    temporary = path.with_name(f".{path.stem}.part.mp4")
    try:
        observation, _ = environment.reset(seed=seed)
        image = np.asarray(_render(environment))
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        fps = environment.metadata.get("render_fps", 30)
        with writing(path):
            writer = imageio_ffmpeg.write_frames(
                str(temporary), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
            )
            writer.send(None)
            over = False
            while not over:
                writer.send(np.ascontiguousarray(image[:height, :width]))
                frames += 1
                action, _ = model.predict(observation, deterministic=True)
                observation, _, terminated, truncated, _ = environment.step(action)
                over = terminated or truncated
                image = np.asarray(_render(environment))
            writer.close()
            temporary.replace(path)
    finally:
        environment.close()
        temporary.unlink(missing_ok=True)
    return frames


def _render(environment: Any) -> Any:
    try:
        image = environment.render()
    except Exception as error:
        # OpenGL bindings fail in their own ways: no driver, no library, no device.
        raise UserError(
            f"off-screen rendering failed ({type(error).__name__}: {error}); install EGL or OSMesa (Debian: libegl1 or "
            "libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        ) from error
    if image is None:
        raise UserError("this environment draws no pictures; leave --video out")
    return image
