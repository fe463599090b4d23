"""No two values that live at once share memory, and the arena is hardly larger than it must be."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import IMAGE, ZOO

import gossamer as gs
from gossamer.engine.capture import capture
from gossamer.engine.memory import Block, Layout, alive_at_once, arrange, lay_out
from gossamer.engine.passes import simplify

blocks = st.lists(
    st.builds(
        lambda size, first, length: Block(16 * size, first, first + length),
        st.integers(1, 1000),
        st.integers(0, 40),
        st.integers(0, 12),
    ),
    max_size=40,
)


@given(blocks)
def test_blocks_that_live_at_once_lie_apart(blocks: list[Block]) -> None:
    offsets = arrange(blocks)
    for (one, at), (two, there) in combinations(zip(blocks, offsets, strict=True), 2):
        assert not one.meets(two) or at + one.size <= there or there + two.size <= at
    assert all(at % 16 == 0 for at in offsets)
    assert max((at + b.size for at, b in zip(offsets, blocks, strict=True)), default=0) >= alive_at_once(blocks)


@given(blocks)
def test_alive_at_once_is_the_sum_at_the_worst_step(blocks: list[Block]) -> None:
    steps = range(max((b.last for b in blocks), default=0) + 1)
    assert alive_at_once(blocks) == max(sum(b.size for b in blocks if b.first <= s <= b.last) for s in steps)


def _layout(name: str, size: int) -> Layout:
    model = gs.models.create(name, num_classes=5, image_size=size)
    return lay_out(simplify(capture(model.eval(), (model.input_shape[0], size, size))))


@pytest.mark.parametrize(
    ("name", "size"),
    [("mnist", 28), ("inception_v3", 96), ("torchvision:resnet18", 64), ("torchvision:densenet121", 64)],
)
def test_the_arena_is_at_most_a_fifth_larger_than_what_lives_at_once(name: str, size: int) -> None:
    layout = _layout(name, size)
    assert layout.alive <= layout.arena <= 1.2 * layout.alive
    assert not [o for o in layout.graph.operations if o.kind == "concat"]
    convs = [o for o in layout.graph.operations if o.kind == "conv" and o.attributes["stride"] == [1, 1]]
    for conv in convs:
        (source, output) = (layout.parts[v].of if v in layout.parts else v for v in (conv.inputs[0], conv.output))
        top, left, _, right = conv.attributes["padding"]
        frame = layout.frames[source]
        if source.shape[1:] != (1, 1) and output.shape[1:] != (1, 1):
            assert frame.pitch == layout.frames[output].pitch
            assert frame.pitch >= source.shape.w + max(left, right)
            assert frame.head >= top * frame.pitch + left


@pytest.mark.parametrize("name", ["cat", "cat of cats", "chunk", "dense block", "growing"])
def test_concatenations_and_slices_are_places(name: str) -> None:
    layout = lay_out(simplify(capture(ZOO[name].eval(), IMAGE)))
    assert layout.parts
    assert not [o for o in layout.graph.operations if o.kind in ("concat", "slice")]
