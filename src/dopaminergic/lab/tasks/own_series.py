"""The user's own series from a CSV or Parquet file: columns to forecast, and others known ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dopaminergic.lab.networks import GATES
from dopaminergic.lab.tasks.cells import tail
from dopaminergic.lab.tasks.forecasting import OUTPUTS
from dopaminergic.lab.tasks.reading import Data, check_changes, read_data
from dopaminergic.lab.tasks.real import RealForecasting
from dopaminergic.lab.tasks.scaling import Scaling, normalised
from dopaminergic.lab.tasks.task import Model, choose, counted, limited

TEST = 0.3  # share of the rows
MOST_ROWS_AHEAD = 10_000
STARTS = 200  # forecasts that run on by themselves, of each of which the error is taken


class UserSeries(RealForecasting):
    """The user's own series from a CSV or Parquet file.

    The task trains on the first 70 % of its rows, and tests on the rest. Errors are root mean
    squares in units of the training part's standard deviation.

    Args:
        path: the file; see `read_series`.
        column: the name of a column, or several; all are forecast. None where the file has one
            only.
        inputs: columns that are known ahead, such as a price; a network sees them one row before.
        time: the column of times, for labels and for the step between rows.
        horizon: rows ahead for which forecasts are judged, at least 1. A network learns one row
            ahead, and runs on by itself for the others.
        validation: share of the rows, in [0, 0.5], at the end of the first 70 %. The weights that
            err least on them are kept, and they are not trained on.
        patience: forward passes without a smaller error on them after which training ends; None:
            a quarter of the budget. Without validation it has no effect.
        contents: the hash that the values must have, as a record has it; None for any.
        cell: `"tanh"`, `"gru"` or `"lstm"`.
        hidden: units.
        output: `"direct"` or `"delta"`.
        batch_size: sequences of `length` rows in a batch.
        length: rows in a sequence, at least 10, the first 5 not scored.
        order: lags of the linear rival.
        dtype: `"float32"` or `"float64"`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be used (see `read_series`) or is not the one of `contents`, a
            column never changes, or a setting is out of range.

    Attributes:
        data: the columns as they were read.
        scaling: from their units to those of `series`.
        horizon: rows ahead.
        test_first: the first row of the test part.
    """

    metric: ClassVar[str] = "nrmse"
    metric_label: ClassVar[str] = "one-step NRMSE on the last 30 %"

    data: Data
    scaling: Scaling
    horizon: int
    test_first: int

    def __init__(
        self,
        *,
        path: str | Path,
        column: str | Sequence[str] | None = None,
        inputs: str | Sequence[str] | None = None,
        time: str | None = None,
        horizon: int = 1,
        validation: float = 0.0,
        patience: int | None = None,
        contents: str | None = None,
        cell: str = "tanh",
        hidden: int = 16,
        output: str = "direct",
        batch_size: int = 8,
        length: int = 25,
        order: int = 12,
        dtype: str = "float32",
    ) -> None:
        choose("cell", cell, tuple(GATES))
        choose("output", output, OUTPUTS)
        counted("length", length, least=10)
        counted("order", order)
        counted("hidden", hidden)
        counted("batch_size", batch_size)
        counted("horizon", horizon, most=MOST_ROWS_AHEAD)
        limited("validation", validation, 0, 0.5)
        known = [inputs] if isinstance(inputs, str) else list(inputs or []) or None
        given = {"inputs": known, "time": time, "horizon": horizon, "validation": validation}
        settings: dict[str, Any] = {"cell": cell, "hidden": hidden, "output": output}
        settings |= {"batch_size": batch_size, "length": length, "order": order, "dtype": dtype}
        self._read(path, column, contents, given, settings)
        self._define_from(path, given, settings)
        self._set_patience(patience, validation)
        self._cut(path, settings, validation)

    def _read(
        self,
        path: str | Path,
        column: str | Sequence[str] | None,
        contents: str | None,
        given: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        """Read the file; its training part must be long enough."""
        columns: dict[str, Any] = {"inputs": given["inputs"], "time": given["time"]}
        data = read_data(path, column, **columns)
        if contents not in (None, data.contents):
            raise ValueError(
                f"{tail(path)}: its contents are {data.contents}, but this run was begun with "
                f"{contents}; put the old "
                "file back, or begin a new run"
            )
        # The training part must hold a sequence to cut, and more equations than the linear rival
        # has unknowns.
        known = data.values.shape[1] - len(data.names)
        unknowns = settings["order"] * (len(data.names) + known) + known + 1
        needed = max(settings["length"] + 3, settings["order"] + unknowns + 1)
        share = 1 - TEST - given["validation"]
        least = -(-10 * needed // 7) + 1 if share == 1 - TEST else int(needed / share) + 2
        self.data = read_data(path, column, **columns, least=least)
        tested = len(data.values) - int(0.7 * len(data.values))
        if given["horizon"] > tested // 2:
            raise ValueError(
                f"horizon: at most {tested // 2}, half of the last 30 % of {tail(path)}, got "
                f"{given['horizon']}; give a shorter one, or more rows"
            )

    def _define_from(
        self, path: str | Path, given: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        names = self.data.names
        own = {"path": str(path), "column": names, "contents": self.data.contents}
        # What is not used is left out, so that older records of the same runs are found.
        unused = {"inputs": None, "time": None, "horizon": 1, "validation": 0}
        extra = {key: value for key, value in given.items() if value != unused[key]}
        title = f"{Path(path).name}: {', '.join(names)}"
        self._define("series", title, 20_000, 500, own | settings | extra)
        self.notes = self.data.notes
        self.pinned = {"column": names, "contents": self.data.contents}
        self.horizon = given["horizon"]

    def _set_patience(self, patience: int | None, validation: float) -> None:
        if patience is not None:
            counted("patience", patience, most=(1 << 32) - 1)
            if not validation:
                raise ValueError(
                    "patience: needs a part of the rows to judge by; give --validation 0.1 too"
                )
            self.settings["patience"] = patience
        self.patience = (patience or self.budget // 4) if validation else None

    def _cut(self, path: str | Path, settings: dict[str, Any], validation: float) -> None:
        """Divide the rows into parts, and put the values into units of the training part."""
        raw = self.data.values
        self.test_first = int(0.7 * len(raw))
        train_rows = self.test_first - int(validation * len(raw))
        every = [*self.data.names, *self.settings.get("inputs", [])]
        check_changes(path, every, raw, train_rows)
        self.scaling = Scaling.of(raw[:train_rows])
        series = normalised(path, every, raw, self.scaling)
        self._use(
            series,
            train_rows,
            batch_size=settings["batch_size"],
            length=settings["length"],
            washout=5,
            targets=len(self.data.names),
        )
        if settings["output"] == "delta" and not (self.change > 1e-6).all():
            raise ValueError(
                "output: 'delta' needs a column whose change changes, got a straight line; use "
                "'direct'"
            )
        self._parts({"nrmse": (self.test_first, len(raw))}, squared=False, scale=1.0)

    @torch.no_grad()
    def validate(self, model: Model) -> Tensor | None:  # noqa: D102
        if self.train_rows == self.test_first:
            return None
        lead = 0 if model.replicas is None else 1
        errors = self.one_step_errors(model, self.train_rows, self.test_first)
        return self._error(errors**2, lead)

    @torch.no_grad()
    def finish(self, model: Model) -> dict[str, Tensor]:  # noqa: D102
        results = super().finish(model)
        if self.horizon == 1:
            return results
        first, last = self.test_first, len(self.series)
        lead = 0 if model.replicas is None else 1
        own = self.free_errors(model, first, last, self.horizon, most=STARTS)
        series = self.series.to(torch.float64)
        count = own.shape[-3]
        starts = torch.linspace(first - 1, last - 1 - self.horizon, count).round().long()
        ahead = starts[:, None] + torch.arange(1, self.horizon + 1)
        still = series[starts, None, : self.targets] - series[ahead, : self.targets]
        linear = torch.from_numpy(self.linear().errors(starts.numpy(), self.horizon))
        rivals = {
            "persistence_horizon": self._error(still**2, 0),
            "linear_ar_horizon": self._error(linear**2, 0),
        }
        return results | {"nrmse_horizon": self._error(own**2, lead)} | self._for_all(model, rivals)
