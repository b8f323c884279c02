"""TensorBoard events of a run, without the steps that a resumed run takes again."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter


class _FromStep(TensorBoardOutputFormat):
    """SB3's writer, telling TensorBoard to forget what other files of the folder say from `step` on."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1)
        self._is_closed = False


def tensorboard_logger(folder: Path, step: int) -> Logger:
    """A logger whose events go on from `step`."""
    folder.mkdir(exist_ok=True)
    return Logger(folder=str(folder), output_formats=[_FromStep(folder, step)])
