"""TensorBoard, Weights & Biases, MLflow and trackio: the one place that imports them."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from proximo.disk import grow
from proximo.errors import UsageError
from proximo.run.callbacks import Callback, RunInfo, as_callback
from proximo.run.config import RunSettings
from proximo.run.event_file import record
from proximo.run.folder import RunFolder
from proximo.run.tracker import Settings, Tracker, score_tags, step_of, subfolder

PROJECT = "proximo"
"""Project, or experiment, of a run that names none."""


class TensorBoard(Tracker):
    """Readings, settings and final scores as event files, for `tensorboard --logdir`."""

    package = "tensorboard"
    price = 0.0001

    def __init__(self, log_dir: str | Path | None = None, *, names: str = "proximo") -> None:
        """log_dir: a folder; None: the run folder. Raises `UsageError`."""
        super().__init__(names=names)
        self.log_dir = None if log_dir is None else Path(log_dir).absolute()

    def ready(self, run: RunInfo) -> None:
        if self.log_dir:
            self._folder = place = self.log_dir
        elif run.folder:
            self._folder, place = run.folder.path, Path(run.folder.name).parent
        else:
            raise UsageError(
                "TensorBoard has no folder: give it one, TensorBoard(log_dir), or give a run_dir"
            )
        run.note(f"tensorboard: tensorboard --logdir {place}")
        super().ready(run)

    def open(self, run: RunInfo, key: str, settings: Settings) -> int:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import hparams

        self._folder.mkdir(parents=True, exist_ok=True)
        # Its reader takes the files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._path, self._waiting = self._folder / name, bytearray()
        self._event, self._summary = Event, Summary
        self._tags = list[str]()
        self._add(0, file_version="brain.Event:2")
        if run.step:  # what a killed run wrote after this step is not shown
            self._add(run.step + 1, session_log=SessionLog(status=SessionLog.START))
        make: Any = hparams
        *begin, self._last = make(settings, dict.fromkeys(score_tags(self.names), 0.0))
        for summary in begin:
            self._add(run.step, summary=summary)
        self.flush()
        return run.step

    def _add(self, step: int, when: float | None = None, **content: Any) -> None:
        event = self._event(wall_time=when or time.time(), step=step, **content)
        self._waiting += record(event.SerializeToString())

    def write(self, values: dict[str, float], step: int, when: float) -> None:
        if list(values) != self._tags:  # else the last event is filled anew
            self._tags, self._row = list(values), self._event()
            self._values = [self._row.summary.value.add(tag=name) for name in values]
        for value, x in zip(self._values, values.values(), strict=True):
            value.simple_value = x
        self._row.step, self._row.wall_time = step, when
        self._waiting += record(self._row.SerializeToString())

    def flush(self) -> None:
        with io.BufferedWriter(grow(self._path)) as file:
            file.write(self._waiting)
        self._waiting.clear()

    def video(self, path: Path, step: int) -> None:
        """TensorBoard shows a GIF as an image; it plays no mp4."""
        if path.suffix != ".gif":
            return
        data = path.read_bytes()
        width, height = struct.unpack_from("<HH", data, 6)
        image = self._summary.Image(
            encoded_image_string=data, width=width, height=height, colorspace=3
        )
        self._add(step, summary=self._summary(value=[{"tag": "replay", "image": image}]))

    def finish(self, scores: dict[str, float], step: int, *, well: bool) -> None:
        if scores:
            self.write(scores, step, time.time())
        if well:
            self._add(step, summary=self._last)
        self.flush()


class WandB(Tracker):
    """Readings in Weights & Biases: offline, in the run folder, unless the user asks for more."""

    package = "wandb"
    price = 0.0003

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        mode: Literal["offline", "online", "shared", "disabled"] | None = None,
        names: str = "proximo",
    ) -> None:
        """project, mode: None is WANDB_PROJECT and WANDB_MODE, or proximo and offline.

        Raises `UsageError` where wandb is not installed.
        """
        super().__init__(names=names)
        self.project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self.mode: Any = mode or os.environ.get("WANDB_MODE") or "offline"
        self.entity = entity

    def ready(self, run: RunInfo) -> None:
        if self.mode == "offline":
            place = Path(run.folder.name) if run.folder else Path.cwd()
            run.note(f"wandb: offline; to upload it: wandb sync {place}/wandb/offline-run-*")
        super().ready(run)

    def open(self, run: RunInfo, key: str, settings: Settings) -> int:
        offline = self.mode in ("offline", "disabled")
        if offline:  # reports of errors and statistics are of the network too
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        place = subfolder(run, "wandb").parent if run.folder else Path.cwd()
        self._wandb = wandb
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=key,
            name=run.name,
            dir=str(place),
            config=settings,
            mode=self.mode,
            resume=None if offline else "allow",
            reinit="create_new",  # a run that the user's program has stays as it is
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=offline,
                x_disable_meta=offline,
                x_disable_machine_info=offline,
            ),
        )
        return max(run.step, int(self._run.step) - 1)

    def write(self, values: dict[str, float], step: int, when: float) -> None:
        self._run.log(values, step=step)

    def video(self, path: Path, step: int) -> None:
        self._run.log({"replay": self._wandb.Video(str(path), format=path.suffix[1:])}, step=step)

    def finish(self, scores: dict[str, float], step: int, *, well: bool) -> None:
        self._run.summary.update(scores)
        self._run.finish(exit_code=0 if well else 1)


class MLflow(Tracker):
    """Readings, settings and videos in MLflow: a database beside the run folder, or a server."""

    package = "mlflow"
    price = 0.003
    KEY = "proximo.key"

    def __init__(
        self,
        experiment: str | None = None,
        *,
        tracking_uri: str | None = None,
        names: str = "proximo",
    ) -> None:
        """experiment, tracking_uri: None is MLFLOW_EXPERIMENT_NAME and MLFLOW_TRACKING_URI.

        Else they are proximo, and mlflow.db in the folder of the run folders, or in the current
        one. Raises `UsageError` where mlflow is not installed.
        """
        super().__init__(names=names)
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def ready(self, run: RunInfo) -> None:
        self._place = run.folder.path.parent if run.folder else Path.cwd()
        self._uri = self.tracking_uri or f"sqlite:///{self._place}/mlflow.db"
        run.note(f"mlflow: mlflow ui --backend-store-uri {self._uri}")
        super().ready(run)

    def open(self, run: RunInfo, key: str, settings: Settings) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):  # which tell of each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)

        self._client, self._metric = MlflowClient(self._uri), Metric
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{self.KEY}` = '{key}'")
        self._waiting = list[Any]()
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return self._last_step()
        tags = {self.KEY: key}
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in settings.items()]
        for some in _batches(params, 100):
            self._client.log_batch(self._id, params=some)
        return -1

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found:
            return str(found.experiment_id)
        artifacts = None if self.tracking_uri else (self._place / "mlartifacts").as_uri()
        return str(self._client.create_experiment(self.experiment, artifacts))

    def _last_step(self) -> int:
        """The last step that the store holds of this run."""
        names = self._client.get_run(self._id).data.metrics
        name = next((name for name in names if name.startswith("time/")), None)
        history = self._client.get_metric_history(self._id, name) if name else []
        return max((point.step for point in history), default=-1)

    def write(self, values: dict[str, float], step: int, when: float) -> None:
        self._waiting += [
            self._metric(re.sub(r"[^\w\-. /]", "_", name), value, int(1000 * when), step)
            for name, value in values.items()
        ]

    def flush(self) -> None:
        for some in _batches(self._waiting, 1000):
            self._client.log_batch(self._id, metrics=some)
        self._waiting.clear()

    def video(self, path: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(path), "videos")

    def finish(self, scores: dict[str, float], step: int, *, well: bool) -> None:
        if scores:
            self.write(scores, step, time.time())
            self.flush()
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """As many as MLflow takes at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Trackio(Tracker):
    """Readings, settings and videos in trackio's database on this machine, for `trackio show`."""

    package = "trackio"
    price = 0.0006

    def __init__(self, project: str | None = None, *, names: str = "proximo") -> None:
        """Raises `UsageError` where trackio is not installed."""
        super().__init__(names=names)
        self.project = project or PROJECT

    def ready(self, run: RunInfo) -> None:
        run.note(f"trackio: trackio show --project {self.project}")
        super().ready(run)

    def open(self, run: RunInfo, key: str, settings: Settings) -> int:
        # Its database itself: `trackio.init` prints, asks the network for the user's name, and has
        # a thread that keeps its errors to itself.
        from trackio import Video
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._video, self._key, self._name = SQLiteStorage, Video, key, run.name
        self._waiting = list[tuple[dict[str, Any], int, str]]()
        self._config: dict[str, Any] | None = {
            **settings,
            "_Username": None,
            "_Created": _iso(time.time()),
            "_Group": None,
        }
        last = SQLiteStorage.get_max_step_for_run(self.project, run.name, run_id=key)
        return -1 if last is None else int(last)

    def write(self, values: dict[str, float], step: int, when: float) -> None:
        self._waiting.append((dict(values), step, _iso(when)))

    def flush(self) -> None:
        rows, steps, times = map(list, zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._storage.bulk_log(
            self.project,
            self._name,
            rows,
            steps=steps,
            timestamps=times,
            config=self._config,
            run_id=self._key,
        )
        self._config = None

    def video(self, path: Path, step: int) -> None:
        video = self._video(path)
        video._save(self.project, self._name, step)
        self._waiting.append(({"replay": video._to_dict()}, step, _iso(time.time())))
        self.flush()

    def finish(self, scores: dict[str, float], step: int, *, well: bool) -> None:
        if scores:
            self.write(scores, step, time.time())
            self.flush()


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat()


KINDS: dict[str, type[Tracker]] = {
    kind.package: kind for kind in (TensorBoard, WandB, MLflow, Trackio)
}
"""Trackers by their names in `run.log`."""


def with_trackers(
    callbacks: Iterable[Callback | Callable[..., Any]], run: RunSettings
) -> list[Callback]:
    """The callbacks of a run, and behind them its trackers, which see what the others add.

    A tracker that the program gives takes the place of the one in `run.log`. Raises `UsageError`
    for those that are not installed.
    """
    own = [as_callback(callback) for callback in callbacks]
    given = [callback for callback in own if isinstance(callback, Tracker)]
    rest: list[Callback] = [callback for callback in own if not isinstance(callback, Tracker)]
    named = [KINDS[name] for name in run.log]
    made = [kind(names=run.log_names) for kind in named if kind not in map(type, given)]
    return [*rest, *given, *made]


def show_video(folder: RunFolder, config: Any, path: Path, alert: Callable[[str], None]) -> None:
    """Add a video of the policy to the trackers of a run that is over."""
    rows = folder.read_metrics()
    step = step_of(rows[-1]) if rows else 0
    info = RunInfo(folder.path.name, config, folder, step, lambda text: None, alert)
    for name in config.run.log:
        try:
            tracker = KINDS[name](names=config.run.log_names)
        except UsageError as error:
            alert(f"the video is not in {name}: {error}")
            continue
        tracker.ready(info)
        tracker.add_video(path)
        tracker.end(None, {})
        tracker.close()
