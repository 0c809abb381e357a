"""GenEval's rules: what a detector saw, compared with what a prompt asked for.

The rules are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513) with two changes that close known holes:
counts are exact ("at least n" pays for flooding the picture), and objects that nobody asked for cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dina.rewards.detection import Box, Detection

RELATIONS = ("left of", "right of", "above", "below")
POSITION_MARGIN = 0.1


@dataclass(frozen=True)
class Clause:
    """What one ``include`` entry asks for; ``position`` is (relation, index of another entry)."""

    label: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass
class SceneScore:
    """Outcome of :func:`score_scene`. Every number lies in [0, 1] except ``excess``.

    Attributes:
        strict: 1.0 if everything asked for is there, exactly, and nothing else is.
        graded: partial credit, see :func:`score_scene`.
        count, color, position: mean over the clauses that ask for it; ``None`` where none does.
        precision: wanted objects among all detected ones, 1.0 for an empty picture.
        excess: number of detected objects that nobody asked for.
        problems: what is wrong, in words.
    """

    strict: float
    graded: float
    count: float | None
    color: float | None
    position: float | None
    precision: float
    excess: int
    problems: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        return "; ".join(self.problems) or "as asked"

    @property
    def parts(self) -> dict[str, float | None]:
        return {
            "count": self.count,
            "color": self.color,
            "position": self.position,
            "precision": self.precision,
            "excess_objects": float(self.excess),
            "strict": self.strict,
        }


def score_scene(
    detections: Sequence[Detection],
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]] = (),
) -> SceneScore:
    """Compares what a detector saw with what a prompt asked for.

    Each include clause makes one check per thing it names, each worth a number in [0, 1]:

    * count: ``max(0, 1 - |n - count| / count)``, ``n`` the detected objects of the class;
    * color: share of ``count`` that has the colour, read on the ``count`` best boxes only;
    * position: share of (object, other) pairs of those boxes that stand in the relation, 0 without a pair.

    ``graded = mean(all checks) * precision`` with ``precision = wanted / detected``, where an object is
    wanted up to the count of its class, so a surplus object, another class and an ``unknown`` all cost.
    ``strict`` is 1.0 if every check and the precision are 1 and no exclude clause is hit (``n >= count`` of
    its class), else 0.0. An excluded object is unwanted, so it costs in ``graded`` through the precision.

    Where several clauses name one class ("a red star and a blue star") the objects are shared out: colours
    are served first, best boxes first, and a surplus is charged to the clause of its colour.

    Args:
        detections: any order; equal scores keep their order.
        include: entries ``{"class", "count"?, "color"?, "position"?}``, position as ``[relation, index]``.
        exclude: entries ``{"class", "count"?}``.

    Raises:
        ValueError: a clause has no class, a count below 1, an unknown relation or an index without a clause.
    """
    clauses = parse_clauses(include)
    ranked = sorted(detections, key=lambda d: -d.score)
    groups = _share_out(ranked, clauses)
    problems: list[str] = []
    counts = [_check_count(clause, group, problems) for clause, group in zip(clauses, groups, strict=True)]
    best = [group[: clause.count] for clause, group in zip(clauses, groups, strict=True)]
    colors = [_check_color(c, b, problems) for c, b in zip(clauses, best, strict=True) if c.color]
    positions = [_check_position(c, best, clauses, i, problems) for i, c in enumerate(clauses) if c.position]

    wanted = sum(len(group) for group in best)
    excess = len(ranked) - wanted
    precision = wanted / len(ranked) if ranked else 1.0
    _name_unexpected(ranked, clauses, problems)
    excluded = _check_exclude(ranked, exclude, problems)

    checks = counts + colors + positions
    right = all(check == 1.0 for check in checks) and excess == 0 and not excluded
    return SceneScore(
        strict=float(right),
        graded=_mean(checks) * precision,
        count=_mean(counts),
        color=_mean(colors) if colors else None,
        position=_mean(positions) if positions else None,
        precision=precision,
        excess=excess,
        problems=problems,
    )


def parse_clauses(include: Sequence[Mapping[str, Any]]) -> list[Clause]:
    """The include entries of a prompt; a key that is absent or null is not asked for."""
    clauses = [_parse_clause(entry, i, len(include)) for i, entry in enumerate(include)]
    if not clauses:
        raise ValueError("include is empty: there is nothing to score")
    return clauses


def relations(a: Box, b: Box) -> set[str]:
    """How ``a`` stands to ``b``: a subset of :data:`RELATIONS`.

    GenEval's rule: the offset of the centres is shortened per axis by ``0.1 * (size of a + size of b)``; a
    direction counts where its component is more than half of the unshortened distance.
    """
    corners = np.array([a, b], dtype=np.float64).reshape(2, 2, 2)
    (center_a, center_b), (size_a, size_b) = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = center_a - center_b
    shortened = np.maximum(np.abs(offset) - POSITION_MARGIN * (size_a + size_b), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def _parse_clause(entry: Mapping[str, Any], index: int, total: int) -> Clause:
    where = f"include[{index}]"
    label = entry.get("class")
    if not isinstance(label, str) or not label:
        raise ValueError(f"{where} names no class: {dict(entry)}")
    count = entry.get("count")
    count = 1 if count is None else int(count)
    if count < 1:
        raise ValueError(f"{where}: count must be at least 1, not {count}")
    position = entry.get("position")
    if position is not None:
        relation, other = position[0], int(position[1])
        if relation not in RELATIONS:
            raise ValueError(f"{where}: unknown position {relation!r}, one of {', '.join(RELATIONS)}")
        if not 0 <= other < total or other == index:
            raise ValueError(f"{where}: position refers to include[{other}], which is no other entry")
        position = (relation, other)
    return Clause(label, count, entry.get("color"), position)


def _share_out(ranked: list[Detection], clauses: list[Clause]) -> list[list[Detection]]:
    """The detections that each clause answers for, best first; each of an asked class goes to one clause."""
    groups: list[list[Detection]] = [[] for _ in clauses]
    for label in dict.fromkeys(clause.label for clause in clauses):
        mine = [i for i, clause in enumerate(clauses) if clause.label == label]
        free = [d for d in ranked if d.label == label]
        if len(mine) == 1:
            groups[mine[0]] = free
            continue
        for i in mine:
            wish = clauses[i].color
            groups[i] = [d for d in free if wish and d.color == wish][: clauses[i].count]
            free = _without(free, groups[i])
        for i in mine:
            missing = clauses[i].count - len(groups[i])
            groups[i] = groups[i] + free[: max(missing, 0)]
            free = free[max(missing, 0) :]
        for surplus in free:
            same = [i for i in mine if clauses[i].color == surplus.color]
            groups[(same or mine)[-1]].append(surplus)
    return groups


def _without(items: list[Detection], taken: list[Detection]) -> list[Detection]:
    gone = {id(item) for item in taken}
    return [item for item in items if id(item) not in gone]


def _check_count(clause: Clause, found: list[Detection], problems: list[str]) -> float:
    if len(found) != clause.count:
        problems.append(f"found {_counted(len(found), clause.label)}, wanted {clause.count}")
    return max(0.0, 1 - abs(len(found) - clause.count) / clause.count)


def _check_color(clause: Clause, best: list[Detection], problems: list[str]) -> float:
    right = sum(d.color == clause.color for d in best)
    if best and right < len(best):
        seen = ", ".join(str(d.color) for d in best if d.color != clause.color)
        problems.append(f"{clause.label} is {seen}, wanted {clause.color}")
    return right / clause.count


def _check_position(
    clause: Clause, best: list[list[Detection]], clauses: list[Clause], index: int, problems: list[str]
) -> float:
    assert clause.position is not None
    relation, other = clause.position
    pairs = [(a, b) for a in best[index] for b in best[other]]
    if not pairs:
        return 0.0
    share = sum(relation in relations(a.box, b.box) for a, b in pairs) / len(pairs)
    if share < 1:
        problems.append(f"{clause.label} is not {relation} {clauses[other].label}")
    return share


def _check_exclude(
    ranked: list[Detection], exclude: Sequence[Mapping[str, Any]], problems: list[str]
) -> bool:
    hit = False
    for entry in exclude:
        limit = entry.get("count") or 1
        n = sum(d.label == entry["class"] for d in ranked)
        if n >= limit:
            hit = True
            problems.append(f"found {_counted(n, entry['class'])}, wanted fewer than {limit}")
    return hit


def _name_unexpected(ranked: list[Detection], clauses: list[Clause], problems: list[str]) -> None:
    asked = {clause.label for clause in clauses}
    others = [d.label for d in ranked if d.label not in asked]
    for label in dict.fromkeys(others):
        problems.append(f"unexpected {_counted(others.count(label), label)}")


def plural(label: str) -> str:
    """The plural of a class name: ``stars``, ``crosses``."""
    return label + ("es" if label.endswith(("s", "x", "ch", "sh")) else "s")


def _counted(n: int, label: str) -> str:
    return f"{n} {label if n == 1 else plural(label)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
