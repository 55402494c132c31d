"""What the doctor is asked to look at: the settings of ``unskew run``, each of which may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unskew.features.plan import Plan
from unskew.pipelines.deployment import Deployment


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings of a run, see ``Deployment``; None for a folder that is not known.

    ``kafka_config``: a file. ``expires``: keys of Redis are given an expiry.
    """

    bootstrap: str
    kafka_config: Path | None = None
    redis_url: str = field(repr=False)
    schema_registry: str | None = field(default=None, repr=False)
    log: Path | None = None
    archive: Path | None = None
    dead_letters: Path | None = None
    state: Path | None = None
    registry: Path | None = None
    idle: Literal["wall", "none"] = "wall"
    prefix: str = "unskew"
    pipeline: str = "main"
    n_hashes: int = 1
    partitions: Sequence[int] | None = None
    allow_eviction: bool = False
    expires: bool = False
    drop: Sequence[str] = ()

    def folders(self) -> dict[str, Path | None]:
        """Return the folders that a run writes, by option."""
        beside = None if self.archive is None else self.archive.with_name("dead_letters")
        return {
            "--state": self.state,
            "--log": self.log,
            "--archive": self.archive,
            "--dead-letters": self.dead_letters or beside,
        }

    def record(self) -> Path | None:
        """Return where the registry's record is."""
        return self.registry or (None if self.log is None else self.log.with_name("registry"))

    def deployment(self, config: Mapping[str, Any] | None = None) -> Deployment | None:
        """Return the configuration of the run; None while one of its folders is not known."""
        state, log, archive, dead_letters = self.folders().values()
        if state is None or log is None or archive is None or dead_letters is None:
            return None
        return Deployment(
            bootstrap=self.bootstrap,
            config=config or {},
            redis_url=self.redis_url,
            schema_registry=self.schema_registry,
            log=log,
            archive=archive,
            dead_letters=dead_letters,
            state=state,
            registry=self.record(),
            idle=self.idle,
            prefix=self.prefix,
            pipeline=self.pipeline,
            n_hashes=self.n_hashes,
            partitions=self.partitions,
            allow_eviction=self.allow_eviction,
            drop=self.drop,
        )


LACKS_DEFINITIONS = "there are no definitions to check it with; give them as PATH, or set UNSKEW_DEFINITIONS"


def view_ids(plan: Plan) -> set[str]:
    """Return the views that a run computes."""
    return {view.id for view in plan.of_topics.views.values()}
