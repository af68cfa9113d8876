"""A logger of your own: each row of metrics.jsonl goes to a CSV file as well, or to any sink.

proximo train ppo CartPole-v1 --callback examples.csv_logger:CSVLogger
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any

from proximo import Callback


@dataclass
class CSVLogger(Callback):
    """Write rows to `path`, under the names of the first one.

    A resumed run cuts off the rows that were written after its checkpoint. It is called in the
    training itself; for a service that may be slow or fail, derive from `proximo.Tracker`.
    """

    kept = ("names", "size")
    path: str = "metrics.csv"

    def start(self, state: object) -> None:
        self.names: list[str] = []
        self.size = 0

    def __call__(self, state: object, rollout: object, row: dict[str, Any]) -> None:
        with open(self.path, "a" if self.size else "w", newline="") as file:
            file.truncate(self.size)
            self.names = self.names or list(row)
            writer = csv.DictWriter(file, self.names, extrasaction="ignore")
            if not self.size:
                writer.writeheader()
            writer.writerow(row)
            self.size = file.tell()
