"""GenEval's verdict exactly as its benchmark gives it, for numbers that can stand beside published ones.

Source: ``evaluation/evaluate_images.py`` of djghosh13/geneval (MIT), function ``evaluate``, whose verdict this is on
200 000 random layouts (three classes, colours, positions, exclusions; no equal scores). Training should use
:func:`dina.rewards.geneval.score_scene`: here "at least n" pays for flooding, and other objects cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dina.rewards.detection import Detection
from dina.rewards.geneval import Clause, parse_clauses, relations


def benchmark_correct(
    detections: Sequence[Detection],
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """Whether GenEval calls a picture correct.

    All include clauses must hold (the ``count`` best boxes of the class exist, all of them have the colour, and all
    stand in the relation to all boxes of the other clause), and no exclude clause (``count`` or more of its class).
    A position can refer to an earlier clause only. Colours must have been read before; equal scores keep their order.
    """
    ranked = sorted(detections, key=lambda d: -d.score)
    groups: list[list[Detection] | None] = []
    for clause in parse_clauses(include):
        best = [d for d in ranked if d.label == clause.label][: clause.count]
        groups.append(best if _holds(clause, best, groups) else None)
    hit = any(
        sum(d.label == entry["class"] for d in ranked) >= (entry.get("count") or 1) for entry in exclude
    )
    return all(group is not None for group in groups) and not hit


def _holds(clause: Clause, best: list[Detection], groups: Sequence[list[Detection] | None]) -> bool:
    if len(best) < clause.count:
        return False
    if clause.color and any(d.color != clause.color for d in best):
        return False
    if clause.position is None:
        return True
    relation, other = clause.position
    others = groups[other] if other < len(groups) else None
    return others is not None and all(relation in relations(a.box, b.box) for a in best for b in others)
