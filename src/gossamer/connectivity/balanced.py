"""Random near-biregular patterns: exactly so many connections, fan-ins and fan-outs as level as can be."""

from __future__ import annotations

import numpy as np

from gossamer.connectivity.hashing import derive, hashes, permutation

_ATTEMPTS = 8  # choices of who gets the odd connections, before a block is declared to have no even one
_ROUNDS = 30  # rounds of random swaps; large sparse blocks need about ten


def balanced(old: np.ndarray, density: float, seed: int) -> tuple[np.ndarray, int]:
    """Exactly round(density * possible) connections, but at least one for every channel; see `Pattern`.

    One split for all groups, so that fan-ins differ by at most one over the whole layer.
    """
    groups, outputs, inputs = old.shape
    asked = round(density * old.size)
    goal = max(asked, max(outputs, inputs) * groups)
    goals = [goal // groups + (g < goal % groups) for g in range(groups)]
    new = np.stack([_grown(old[g], goals[g], derive(seed, f"group {g}")) for g in range(groups)])
    return new, max(0, int(new.sum()) - asked)


def _grown(old: np.ndarray, goal: int, seed: int) -> np.ndarray:
    """`goal` connections that contain the old ones, with fan-ins and fan-outs as level as can be.

    Row and column degrees are decided first, then paired at random; where more than half of the free places would be
    filled, the places that stay free are paired instead.
    """
    outputs, inputs = old.shape
    if goal >= old.size:
        return np.ones_like(old)
    if goal <= old.sum():
        return old.copy()
    add = goal - int(old.sum())
    rows, columns = old.sum(1), old.sum(0)
    for attempt in range(_ATTEMPTS):
        key = derive(seed, f"balanced {goal} {attempt}")
        more_rows = _level(rows, add, derive(key, "rows")) - rows
        more_columns = _level(columns, add, derive(key, "columns")) - columns
        if 2 * add <= old.size - old.sum():
            paired = _pair(more_rows, more_columns, old, key)
            on = None if paired is None else old | paired
        else:
            paired = _pair(inputs - rows - more_rows, outputs - columns - more_columns, old, key)
            on = None if paired is None else ~paired
        if on is not None:
            return on
    return _one_by_one(old, add, seed)


def _level(degrees: np.ndarray, add: int, seed: int) -> np.ndarray:
    """Pour `add` units onto degrees so that the lowest rise first; the last units fall at random."""
    low, high = int(degrees.min()), int(degrees.max()) + add
    while low < high:  # the highest level that `add` units can fill completely
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(level - degrees, 0).sum() <= add else (low, level - 1)
    filled = np.maximum(degrees, low)
    order = permutation(seed, len(degrees))
    rest = add - int((filled - degrees).sum())
    filled[order[filled[order] == low][:rest]] += 1
    return filled


def _pair(rows: np.ndarray, columns: np.ndarray, taken: np.ndarray, seed: int) -> np.ndarray | None:
    """A random boolean block with these row and column sums that avoids `taken`; None where there is none.

    The configuration model: shuffle the columns' stubs against the rows', then mend every place that is taken or
    named twice by exchanging columns with a random other stub. A swap is made only when both new places are free; what
    swaps cannot mend is placed along augmenting paths.
    """
    width = taken.shape[1]
    row = np.repeat(np.arange(len(rows)), rows) * width
    column = np.repeat(np.arange(len(columns)), columns)[permutation(derive(seed, "shuffle"), int(rows.sum()))]
    count = len(row)
    used = taken.ravel().astype(np.int32)
    np.add.at(used, row + column, 1)
    owner = np.full(taken.size, -1)
    owner[row + column] = np.arange(count)
    bad = np.arange(count)
    for turn in range(_ROUNDS):
        place = row[bad] + column[bad]
        bad = bad[taken.ravel()[place] | ((used[place] > 1) & (owner[place] != bad))]
        if not bad.size:
            break
        partner = (hashes(derive(seed, f"swap {turn}"), bad.size) % np.uint64(count)).astype(np.int64)
        first, second = row[bad] + column[partner], row[partner] + column[bad]
        free = (used[first] == 0) & (used[second] == 0) & (first != second)
        one, two, first, second = bad[free], partner[free], first[free], second[free]
        fine = _claimed(count, one, two) & _claimed(taken.size, first, second)
        one, two = one[fine], two[fine]
        np.subtract.at(used, row[one] + column[one], 1)
        np.subtract.at(used, row[two] + column[two], 1)
        column[one], column[two] = column[two], column[one]
        for moved in (one, two):
            used[row[moved] + column[moved]] += 1
            owner[row[moved] + column[moved]] = moved
    on = np.zeros(taken.size, dtype=np.bool_)
    on[row + column] = True
    on = on.reshape(taken.shape) & ~taken
    missing = columns - on.sum(0)
    for start in np.repeat(np.arange(len(rows)), rows - on.sum(1)):
        if not _augment(on, taken, missing, start):
            return None
    return on


def _augment(on: np.ndarray, taken: np.ndarray, missing: np.ndarray, start: int | np.integer) -> bool:
    """One more place for row `start`, moving others along a shortest alternating path to a column with one `missing`."""
    came_from_row = np.full(on.shape[1], -1)
    came_from_column = np.full(on.shape[0], -1)
    rows = np.array([start])
    seen = np.zeros(on.shape[0], dtype=np.bool_)
    seen[start] = True
    while rows.size:
        open_places = ~on[rows] & ~taken[rows]
        columns = np.flatnonzero(open_places.any(0) & (came_from_row < 0))
        came_from_row[columns] = rows[open_places[:, columns].argmax(0)]
        goals = columns[missing[columns] > 0]
        if goals.size:
            column = goals[0]
            missing[column] -= 1
            while True:
                row = came_from_row[column]
                on[row, column] = True
                if row == start:
                    return True
                column = came_from_column[row]
                on[row, column] = False
        rows = np.flatnonzero(on[:, columns].any(1) & ~seen) if columns.size else columns
        seen[rows] = True
        came_from_column[rows] = columns[on[np.ix_(rows, columns)].argmax(1)] if rows.size else -1
    return False


def _claimed(space: int, *wishes: np.ndarray) -> np.ndarray:
    """For n swaps that each wish for some of `space` things: who got all it wished for, no thing given twice."""
    ticket = np.arange(len(wishes[0]))
    holder = np.empty(space, dtype=np.int64)
    for wish in wishes:
        holder[wish] = ticket
    return np.logical_and.reduce([holder[wish] == ticket for wish in wishes])


def _one_by_one(old: np.ndarray, add: int, seed: int) -> np.ndarray:
    """The last resort for blocks so small or uneven that no level choice exists: the best free place, again and again."""
    on = old.copy()
    order = hashes(derive(seed, "one by one"), old.size).reshape(old.shape) / 2.0**64
    for _ in range(add):
        cost = on.sum(1)[:, None] + on.sum(0)[None, :] + order
        on.flat[np.where(on, np.inf, cost).argmin()] = True
    return on
