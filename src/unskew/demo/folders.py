"""The folders and files that the demo writes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from unskew.features.errors import RequestError

_MARK = ".unskew-demo"


@dataclass(frozen=True)
class Folders:
    """The folders and files that the demo writes, under ``root``."""

    root: Path

    @property
    def log(self) -> Path:
        """The Parquet log."""
        return self.root / "log"

    @property
    def archive(self) -> Path:
        """The event archive."""
        return self.root / "archive"

    @property
    def dead_letters(self) -> Path:
        """Records that could not be decoded."""
        return self.root / "dead_letters"

    @property
    def state(self) -> Path:
        """The recovery store."""
        return self.root / "state"

    @property
    def end(self) -> Path:
        """The end offsets of each topic and partition, at which the replay is complete."""
        return self.root / "end.json"

    @property
    def stderr(self) -> Path:
        """The standard error output of the pipeline."""
        return self.root / "pipeline.log"

    @property
    def training_set(self) -> Path:
        """The training set."""
        return self.root / "training_set.parquet"

    @property
    def baselines(self) -> Path:
        """Populations that later ones are compared with, which ``unskew ui`` keeps."""
        return self.root / "baselines"

    @property
    def figures(self) -> Path:
        """What ``unskew ui`` measures."""
        return self.root / "figures"

    def prepare(self) -> None:
        """Make an empty folder, which replaces that of an earlier demo.

        Raises ``RequestError`` for a folder that holds anything else, so that no other files are deleted.
        """
        if self.root.exists() and any(self.root.iterdir()):
            if not (self.root / _MARK).exists():
                raise RequestError(f"{self.root} holds files that are not the demo's; name an empty or a new folder")
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / _MARK).touch()
