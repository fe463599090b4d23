"""How many permutations of the vertices of a coloured graph keep its edges (section 4: of channels, the connections).

Colour refinement leaves cells of vertices that it cannot tell apart. Where every edge between two cells exists, or none, the
two move independently, and such edges are dropped; what remains falls into connected parts. Equal parts exchange with each
other (a factorial), and within a part |Aut| is the orbit of one vertex times |Aut| with that vertex held fixed, the
orbit found by search. Exact for every graph, and fast where refinement leaves little to search.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gossamer.connectivity.hashing import mixed
from gossamer.graph.channels import components
from gossamer.graph.classes import scatter

_ODD = np.uint64(0x9E3779B97F4A7C15)
_BUDGET = 20_000_000  # edges looked at before a count gives up exactness: about two seconds
_STEP = 2_000  # what one refinement costs besides its edges, in edges


class TooLargeError(Exception):
    """The search would look at more edges than its budget."""


@dataclass(frozen=True)
class Graph:
    """Edges from `tails` to `heads`, each with a label (uint64), among `vertices`, ascending numbers."""

    vertices: np.ndarray
    tails: np.ndarray
    heads: np.ndarray
    labels: np.ndarray

    def within(self, vertices: np.ndarray, colours: np.ndarray) -> Graph:
        """These vertices and the edges among them, without those that their colours already imply."""
        inside = np.zeros(len(colours), np.bool_)
        inside[vertices] = True
        both = inside[self.tails] & inside[self.heads]
        part = Graph(vertices, self.tails[both], self.heads[both], self.labels[both])
        telling = part._telling(colours)
        return Graph(vertices, part.tails[telling], part.heads[telling], part.labels[telling])

    def _telling(self, colours: np.ndarray) -> np.ndarray:
        """Edges between cells that are neither fully connected nor apart, boolean."""
        if not len(self.tails):
            return np.zeros(0, np.bool_)
        _, of = np.unique(colours[self.vertices], return_inverse=True)
        sizes = np.bincount(of.ravel())
        cell = np.zeros(len(colours), np.int64)
        cell[self.vertices] = of.ravel()
        a, b = cell[self.tails], cell[self.heads]
        labelled = np.stack([self.labels, a.astype(np.uint64), b.astype(np.uint64)])
        kinds, kind = np.unique(labelled, axis=1, return_inverse=True)
        kind = kind.ravel()
        loops = np.bincount(kind, weights=self.tails == self.heads)
        edges = np.bincount(kind) - loops
        first, second = kinds[1].astype(np.int64), kinds[2].astype(np.int64)
        all_of_them = sizes[first] * (sizes[second] - (first == second))
        return ((edges > 0) & (edges < all_of_them))[kind]

    def parts(self) -> list[np.ndarray]:
        """The vertices of each connected part."""
        place = np.searchsorted(self.vertices, np.stack([self.tails, self.heads], 1))
        root = components(len(self.vertices), place)
        order = np.argsort(root, kind="stable")
        return np.split(self.vertices[order], np.flatnonzero(np.diff(root[order])) + 1)


def automorphisms(
    graph: Graph, colours: np.ndarray, layer: np.ndarray, layers: int, budget: int = _BUDGET
) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the share of each layer in the number of automorphisms, and whether it is exact, both [layers].

    `colours` and `layer` [vertices] give each vertex its stable colour and its layer; layers are numbered in the order of
    computation. A layer's share is the number of ways that remain for its vertices when those of the layers before it
    stay in place: the shares of all layers multiply to the total. Where the search would look at more edges than `budget`,
    the share is that of all permutations within the colours: an upper bound.
    """
    logs, exact = np.zeros(layers), np.ones(layers, np.bool_)
    graph = graph.within(graph.vertices, colours)
    search = _Search(budget)
    for block, inside in _blocks(graph, colours):
        own = colours[block]
        try:
            shares = search.count(inside, own, layer[block])
        except (TooLargeError, RecursionError):
            _, first, sizes = np.unique(own, return_index=True, return_counts=True)
            shares = defaultdict(float)
            for where, size in zip(layer[block[first]].tolist(), sizes.tolist(), strict=True):
                shares[where] += log_factorial(size)
            exact[list(shares)] = False
        for where, log in shares.items():
            logs[where] += log
    return logs, exact


def _blocks(graph: Graph, colours: np.ndarray) -> Iterator[tuple[np.ndarray, Graph]]:
    """Cells that edges relate, together: their vertices, and the graph among them with its vertices numbered 0, 1, ..."""
    if not len(graph.vertices):
        return
    _, cell = np.unique(colours[graph.vertices], return_inverse=True)
    cell = cell.ravel()
    at, to = (np.searchsorted(graph.vertices, ends) for ends in (graph.tails, graph.heads))
    block = components(int(cell.max()) + 1, np.stack([cell[at], cell[to]], 1))[cell]
    for root in np.unique(block):
        members = np.flatnonzero(block == root)
        among = block[at] == root
        tails, heads = (np.searchsorted(members, ends[among]) for ends in (at, to))
        yield graph.vertices[members], Graph(np.arange(len(members)), tails, heads, graph.labels[among])


class _Search:
    """Counts the automorphisms of one block after the other, within one budget of edges to look at."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def count(self, graph: Graph, colours: np.ndarray, layer: np.ndarray) -> dict[int, float]:
        """log10 of the share of each layer that occurs; see `automorphisms`. Raises TooLargeError."""
        self.layer = layer
        shares: defaultdict[int, float] = defaultdict(float)
        todo = [(graph, colours, 1)]
        while todo:
            graph, colours, times = todo.pop()
            graph = graph.within(graph.vertices, colours)
            parts = graph.parts()
            if len(parts) == 1 and len(graph.vertices) > 1:
                cell = self._cell(graph, colours)
                held, orbit = self._orbit(graph, colours, cell)
                shares[int(self.layer[cell[0]])] += times * math.log10(orbit)
                todo.append((graph, held, times))
                continue
            for alike in self._kinds(graph, parts, colours):
                shares[int(self.layer[alike[0]].min())] += times * log_factorial(len(alike))
                if len(alike[0]) > 1:
                    todo.append((replace(graph, vertices=alike[0]), colours, times * len(alike)))
        return shares

    def _orbit(self, graph: Graph, colours: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, int]:
        """Colours with the cell's first vertex held fixed, and how many vertices of the cell it can be moved to."""
        held, *others = (self._refine(graph, _marked(colours, vertex)) for vertex in cell)
        return held, 1 + sum(self._isomorphic(graph, held, graph, other) for other in others)

    def _cell(self, graph: Graph, colours: np.ndarray) -> np.ndarray:
        """The vertices of the first cell that the edges still tell something about."""
        touched = np.unique(np.concatenate([graph.tails, graph.heads]))
        first = touched[np.lexsort((colours[touched], self.layer[touched]))[0]]
        return graph.vertices[colours[graph.vertices] == colours[first]]

    def _kinds(self, graph: Graph, parts: list[np.ndarray], colours: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The parts, those that are equal together."""
        looks: defaultdict[bytes, list[list[np.ndarray]]] = defaultdict(list)
        for part in parts:
            kinds = looks[np.sort(colours[part]).tobytes()]
            for kind in kinds:
                if len(part) == 1 or self._isomorphic(graph, colours, graph, colours, kind[0], part):
                    kind.append(part)
                    break
            else:
                kinds.append([part])
        for kinds in looks.values():
            yield from kinds

    def _isomorphic(
        self,
        one: Graph,
        colours: np.ndarray,
        other: Graph,
        others: np.ndarray,
        vertices: np.ndarray | None = None,
        images: np.ndarray | None = None,
    ) -> bool:
        """Whether edges and stable colours of the vertices are those of their images, in some order."""
        vertices = one.vertices if vertices is None else vertices
        images = other.vertices if images is None else images
        if not np.array_equal(np.sort(colours[vertices]), np.sort(others[images])):
            return False
        one, other = one.within(vertices, colours), other.within(images, others)
        if not len(one.tails) or len(np.unique(colours[vertices])) == len(vertices):
            return True
        parts, left = one.parts(), other.parts()
        if len(parts) > 1:
            for part in parts:
                match = next(
                    (k for k, p in enumerate(left) if self._isomorphic(one, colours, other, others, part, p)), -1
                )
                if match < 0:
                    return False
                del left[match]
            return True
        cell = self._cell(one, colours)
        held = self._refine(one, _marked(colours, cell[0]))
        return any(
            self._isomorphic(one, held, other, self._refine(other, _marked(others, image)))
            for image in images[others[images] == colours[cell[0]]]
        )

    def _refine(self, graph: Graph, colours: np.ndarray) -> np.ndarray:
        """Stable colours that tell apart what these do."""
        told = 0
        while (now := len(np.unique(colours[graph.vertices]))) > told:
            told = now
            self.budget -= len(graph.tails) + _STEP
            if self.budget < 0:
                raise TooLargeError
            up = scatter(graph.heads, mixed(colours[graph.tails] * _ODD + graph.labels), len(colours))
            down = scatter(graph.tails, mixed(colours[graph.heads] * _ODD + ~graph.labels), len(colours))
            colours = mixed(colours * _ODD + mixed(up) - down)
        return colours


def log_factorial(n: int) -> float:
    """log10(n!)."""
    return math.lgamma(n + 1) / math.log(10)


def _marked(colours: np.ndarray, vertex: int) -> np.ndarray:
    colours = colours.copy()
    colours[vertex : vertex + 1] = ~colours[vertex : vertex + 1]
    return colours
