"""Why sparse networks are efficient (section 4): which permutations of channels leave a network as it is, and how many.

Lemma 1: a dense network has at least n_1! n_2! ... n_l! equivalent copies, one for each permutation of the channels of each
hidden layer. `permute` makes them. A permutation that also leaves the *pattern of connections* as it is leads from one setting
of the weights of a network to another setting of the same network that computes the same: training has that many
equal solutions to choose from. `count` says how many there are, `signatures` which channels they exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from gossamer.connectivity.hashing import mixed
from gossamer.graph.channels import ChannelGraph, training_graph
from gossamer.graph.tracing import Inputs
from gossamer.symmetry.automorphisms import Graph, automorphisms, log_factorial
from gossamer.symmetry.coupling import Coupling
from gossamer.symmetry.permutation import permuted
from gossamer.symmetry.refinement import Relation, refine, relations

__all__ = ["LayerSymmetry", "Symmetries", "count", "permute", "signatures"]


@dataclass(frozen=True)
class LayerSymmetry:
    """The channels of one hidden layer, or of several that a sum couples, and how many ways they can be permuted."""

    layers: tuple[str, ...]
    channels: int
    distinct: int  # signatures, upwards and downwards: as many as channels when the connectivity tells all apart
    log10: float
    exact: bool  # else log10 is an upper bound

    @property
    def name(self) -> str:
        return self.layers[0]

    @property
    def dense(self) -> float:
        """log10 of channels!, this layer's factor in Lemma 1."""
        return log_factorial(self.channels)


@dataclass(frozen=True)
class Symmetries:
    """log10 of the number of channel permutations that leave the connectivity unchanged, in total and by layer.

    A layer's share is the number of ways that remain for its channels when those of the layers before it stay in
    place, so the shares multiply to the total. `exact` says whether log10 is the number itself; else it is an upper bound.
    """

    layers: tuple[LayerSymmetry, ...]

    @property
    def log10(self) -> float:
        return sum(layer.log10 for layer in self.layers)

    @property
    def exact(self) -> bool:
        return all(layer.exact for layer in self.layers)

    @property
    def dense(self) -> float:
        """log10 of Lemma 1's product: what the dense network of the same channels has."""
        return sum(layer.dense for layer in self.layers)


def permute(
    model: nn.Module,
    permutations: Mapping[str, Sequence[int] | np.ndarray],
    example_inputs: Inputs | None = None,
) -> nn.Module:
    """A copy of the model with its channels in another order, which computes the same (Lemma 1).

    `permutations` maps the names of convolutions and linear layers to orders of their output channels: channel k of the
    copy is channel `permutation[k]` of the model. Weights, biases, normalisation and patterns follow wherever the channels go,
    and channels coupled to them (by a residual sum, say) move along; layers that are not named stay as they are, but for their
    inputs. Works for dense and sparse layers alike.

    `example_inputs` is as in `gs.dead_channels`; by default the model's `input_shape`. Raises ValueError for a model whose
    channels cannot be followed, for the channels of image and classes, and for permutations that coupled
    channels, groups, splits or shuffles do not allow: both networks are run (in float64) and compared before one is returned.
    """
    return permuted(model, graph_of(model, example_inputs), permutations, _inputs(model, example_inputs))


def signatures(
    model: nn.Module | ChannelGraph, example_inputs: Inputs | None = None, *, downwards: bool = False
) -> dict[str, np.ndarray]:
    """Each channel's connection tree, as one number: layer name -> uint64 [out_channels].

    Upwards from the image: two channels of a layer have equal signatures when their inputs have, all the way down.
    With `downwards` also back from the prediction: then equal signatures are those of channels that the connectivity alone
    cannot tell apart by refinement, and channels that some symmetry exchanges always have equal ones. All channels of a
    dense layer are equal until a sparse layer above tells them apart. Signatures are those of the same channels after
    `permute`; between networks with other layers they mean nothing.

    `example_inputs` is as in `gs.dead_channels`; by default the model's `input_shape`. Raises ValueError for a model whose
    channels cannot be followed.
    """
    coupling = Coupling(graph_of(model, example_inputs))
    colours = refine(coupling, relations(coupling), downwards)
    return {
        call.name: mixed(colours[coupling.of[call.outputs]] + coupling.rank[call.outputs].astype(np.uint64))
        for call in coupling.graph.layers
    }


def count(model: nn.Module | ChannelGraph, example_inputs: Inputs | None = None) -> Symmetries:
    """log10 of the number of channel permutations that leave the connectivity unchanged, by layer and in total.

    The image's channels and the classes stay in place, coupled channels move together. For dense layers this is
    Lemma 1's product of factorials, exactly. For sparse ones the classes of equal `signatures` bound it from above
    (each permutation stays within them), and a search inside the classes finds the exact number; where the search would
    take more than seconds the bound stands, and `exact` is False for those layers. It is False too for channels
    on an axis that the model cuts into parts (group normalisation, channel shuffle): more may then hold them in place
    than the connections.

    Arguments and errors are those of `signatures`.
    """
    coupling = Coupling(graph_of(model, example_inputs))
    steps = relations(coupling)
    colours = refine(coupling, steps, downwards=True)
    space_of = np.full(coupling.count, -1)
    for number, space in enumerate(coupling.spaces):
        space_of[space.members] = number
    free = np.flatnonzero(space_of >= 0)
    _, cell, size = np.unique(colours[free], return_inverse=True, return_counts=True)
    several = free[size[cell.ravel()] > 1]
    logs, exact = automorphisms(_edges(several, steps, coupling.count), colours, space_of, len(coupling.spaces))
    sure = [bool(e) and not coupling.divided[s.members].any() for e, s in zip(exact, coupling.spaces, strict=True)]
    return Symmetries(
        tuple(
            LayerSymmetry(s.layers, len(s.members), len(np.unique(colours[s.members])), float(log), is_exact)
            for s, log, is_exact in zip(coupling.spaces, logs, sure, strict=True)
        )
    )


def graph_of(model: nn.Module | ChannelGraph, example_inputs: Inputs | None = None) -> ChannelGraph:
    """The channel graph of a training pass, in which auxiliary heads run, or of an inference pass where that fails."""
    if isinstance(model, ChannelGraph):
        return model
    return training_graph(model, _inputs(model, example_inputs))[0]


def _inputs(model: nn.Module, example_inputs: Inputs | None) -> Inputs:
    own: Inputs | None = getattr(model, "input_shape", None) if example_inputs is None else example_inputs
    if own is None:
        raise ValueError("symmetry needs the (channels, height, width) of an image: this model has no input_shape")
    return own


def _edges(vertices: np.ndarray, steps: list[Relation], classes: int) -> Graph:
    """The connections among these classes, those of fully connected layers left out."""
    inside = np.zeros(classes, np.bool_)
    inside[vertices] = True
    tails, heads, labels = [vertices[:0]], [vertices[:0]], [np.zeros(0, np.uint64)]
    for step in steps:
        if step.rows is None or step.columns is None:
            continue
        both = inside[step.sources[step.columns]] & inside[step.targets[step.rows]]
        rows, columns = step.rows[both], step.columns[both]
        tails.append(step.sources[columns])
        heads.append(step.targets[rows])
        labels.append(mixed(step.source_salt[columns]) + step.target_salt[rows])
    return Graph(vertices, np.concatenate(tails), np.concatenate(heads), np.concatenate(labels))
