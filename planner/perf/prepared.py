"""Many questions as arrays, so that all are answered at once and again for other coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.perf.arrays import Array
from planner.perf.chip import Chip
from planner.perf.coefficients import Coefficients
from planner.perf.pools import serve_batch, serve_pools
from planner.perf.question import Question
from planner.perf.serving import Engine, Load, Served, serve
from planner.perf.work import Work

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Prepared:
    """The questions, in order, with what each needs. Build it with `prepare`."""

    questions: tuple[Question, ...]
    work: Work  # of the replicas that decode
    prefill: Work  # of those that prefill; the same unless there are pools
    chip: Chip
    load: Load
    engine: Engine
    replicas: tuple[Array, Array]
    mixed: Index  # which questions are about what
    pools: Index
    batches: Index

    def served(self, co: Coefficients) -> Served:
        """Answers to all questions, in order, with one row of coefficients for each."""
        count = len(self.questions)
        columns = {field.name: np.zeros(count) for field in fields(Served)}
        for rows, part in self._parts(co):
            for name, column in columns.items():
                column[rows] = getattr(part, name)
        return Served(**columns)

    def take(self, rows: Index) -> Prepared:
        """Only the chosen questions."""
        return Prepared(
            questions=tuple(self.questions[row] for row in rows),
            work=self.work.take(rows),
            prefill=self.prefill.take(rows),
            chip=self.chip.take(rows),
            load=self.load.take(rows),
            engine=self.engine.take(rows),
            replicas=(self.replicas[0][rows], self.replicas[1][rows]),
            mixed=np.flatnonzero(np.isin(rows, self.mixed)),
            pools=np.flatnonzero(np.isin(rows, self.pools)),
            batches=np.flatnonzero(np.isin(rows, self.batches)),
        )

    def _parts(self, co: Coefficients) -> list[tuple[Index, Served]]:
        parts: list[tuple[Index, Served]] = []
        for rows, function in ((self.mixed, serve), (self.batches, serve_batch)):
            if rows.size:
                part, own = self.take(rows), co.take(rows)
                parts.append((rows, function(part.work, part.chip, own, part.load, part.engine)))
        if self.pools.size:
            part, own = self.take(self.pools), co.take(self.pools)
            served = serve_pools(part.prefill, part.work, part.chip, own, part.load, part.engine, part.replicas)
            parts.append((self.pools, served))
        return parts


def prepare(questions: Sequence[Question]) -> Prepared:
    """Raises PlannerError, for the first question that cannot be, if its model does not fit or a figure is missing."""
    works = [question.work() for question in questions]
    splits = [question.split for question in questions]
    kinds = ["pools" if q.split else "batch" if q.kind == "batch" else "mixed" for q in questions]
    return Prepared(
        questions=tuple(questions),
        work=Work.stack(works),
        prefill=Work.stack(
            [q.work(q.split.prefill) if q.split else work for q, work in zip(questions, works, strict=True)]
        ),
        chip=Chip.stack([question.chip() for question in questions]),
        load=Load.stack([question.load_row() for question in questions]),
        engine=Engine.stack([q.engine_limits(work) for q, work in zip(questions, works, strict=True)]),
        replicas=(
            np.array([split.prefill_replicas if split else 1 for split in splits], float),
            np.array([split.decode_replicas if split else 1 for split in splits], float),
        ),
        mixed=_rows(kinds, "mixed"),
        pools=_rows(kinds, "pools"),
        batches=_rows(kinds, "batch"),
    )


def _rows(kinds: Sequence[str], kind: str) -> Index:
    return np.array([row for row, found in enumerate(kinds) if found == kind], np.intp)
