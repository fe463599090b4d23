"""The paper's experiments by name: its Figures 2 to 6 and Table 1 as configurations, beside the numbers it prints.

Changpinyo, Sandler, Zhmoginov, "The Power of Sparsity in Convolutional Neural Networks" (2017). Its figures are drawn
without tables, so that only what its text and Table 1 print can be set beside ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from gossamer.experiments.results import Row, done, summarise
from gossamer.experiments.sweep import Size, matched_sizes
from gossamer.training.config import RECIPES, TrainConfig

MNIST_DENSITIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
IMAGENET_DENSITIES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
MULTIPLIERS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


@dataclass(frozen=True)
class Printed:
    """A row of Table 1: the numbers as the paper prints them, and P@1 in percent."""

    madds: str
    params: str
    precision: float


@dataclass(frozen=True)
class Experiment:
    """A figure or table of the paper: what to train, how often, and what the paper prints of it."""

    title: str
    base: TrainConfig
    sizes: tuple[Size, ...]
    rounds: int
    says: str
    printed: dict[str, Printed] = field(default_factory=dict)
    starts: tuple[float, ...] = ()
    """Densities to grow from (Figure 6), beside training the dense network from scratch."""
    periods: tuple[int, ...] = ()
    """Steps after which the connections double (Figure 6)."""

    def some(self, names: Sequence[str]) -> list[Size]:
        """The networks of these names; a `ValueError` that lists the names otherwise."""
        sizes = {size.name: size for size in self.sizes}
        unknown = [name for name in names if name not in sizes]
        if unknown:
            raise ValueError(f"{self.title} has no network {', '.join(unknown)}; it has {', '.join(sizes)}")
        return [sizes[name] for name in names]


def imagenet_sizes() -> tuple[Size, ...]:
    """Table 1's rows in its order: sparse, then depth multiplier; the dense network once."""
    sparse = [Size.sparse(value) for value in IMAGENET_DENSITIES if value < 1]
    return (Size.hybrid(0.5, 0.01), *sparse, Size.dense(), *(Size.thin(value) for value in MULTIPLIERS))


TABLE1 = {
    "hybrid-0.5x0.01": Printed("43.0M", "90k", 40.3),
    "sparse-0.003": Printed("82.0M", "158k", 46.1),
    "sparse-0.01": Printed("104M", "287k", 52.3),
    "sparse-0.03": Printed("208M", "724k", 59.5),
    "sparse-0.1": Printed("628M", "2.3M", 67.2),
    "sparse-0.3": Printed("1.80B", "6.6M", 73.0),
    "sparse-0.6": Printed("3.50B", "13M", 75.0),
    "dense": Printed("5.70B", "22M", 77.0),
    "thin-0.05": Printed("55.0M", "56k", 24.6),
    "thin-0.1": Printed("75.0M", "170k", 38.6),
    "thin-0.2": Printed("183M", "718k", 54.2),
    "thin-0.3": Printed("439M", "1.8M", 64.0),
    "thin-0.5": Printed("1.40B", "5.4M", 72.3),
    "thin-0.8": Printed("3.40B", "13M", 75.6),
}

INCEPTION = TrainConfig(
    model="inception_v3",
    data="imagenet",
    image_size=299,
    epochs=100,
    batch_size=256,
    divisor=8,
    pattern="uniform",
    weight_decay=4e-5,
    label_smoothing=0.1,
    warmup_epochs=1,
)
VGG16N = TrainConfig(
    model="vgg16n",
    data="imagenet",
    image_size=224,
    epochs=100,
    batch_size=256,
    pattern="uniform",
    weight_decay=1e-4,
    warmup_epochs=1,
)

EXPERIMENTS = {
    "figure2": Experiment(
        title="Figure 2: MNIST network, accuracy against params and multiply-adds",
        base=replace(RECIPES["mnist"], pattern="uniform", first_layer="sqrt"),
        sizes=tuple(matched_sizes(MNIST_DENSITIES)),
        rounds=5,
        says="99.5% when dense; accuracy falls by 1% from 2 million params to 2000",
    ),
    "figure3": Experiment(
        title="Figure 3: CIFAR-10 network, accuracy against params and multiply-adds",
        base=replace(RECIPES["cifar10"], pattern="uniform"),
        sizes=tuple(matched_sizes((0.01, 0.03, 0.1, 0.3, 1.0))),
        rounds=2,
        says="87% when dense",
    ),
    "figure4": Experiment(
        title="Figure 4: Inception V3 on ImageNet, P@1 against params and multiply-adds",
        base=INCEPTION,
        sizes=imagenet_sizes(),
        rounds=1,
        says="the curve of Table 1",
        printed=TABLE1,
    ),
    "figure5": Experiment(
        title="Figure 5: VGG-16n on ImageNet, P@1 against params and multiply-adds",
        base=VGG16N,
        sizes=tuple(matched_sizes((0.03, 0.1, 0.3, 0.6, 1.0))),
        rounds=1,
        says="about 7 times fewer params than VGG-16 at comparable precision; networks down to 1/30 of VGG-16n",
    ),
    "figure6": Experiment(
        title="Figure 6: Inception V3 on ImageNet, P@1 while the network grows from almost empty to dense",
        base=INCEPTION,
        sizes=(Size.dense(),),
        rounds=1,
        says="every growing network catches up with the dense one, some with small gains, and recovers quickly",
        starts=(0.01, 0.001),
        periods=(10_000, 25_000, 50_000),
    ),
    "table1": Experiment(
        title="Table 1: Inception V3 on ImageNet after 100 epochs",
        base=INCEPTION,
        sizes=imagenet_sizes(),
        rounds=1,
        says="P@1 40.3 with 90k params to 77 with 22M (78.8 in the original)",
        printed=TABLE1,
    ),
}


def find(name: str) -> Experiment:
    """The experiment of that name; a `ValueError` that lists the names otherwise."""
    if name not in EXPERIMENTS:
        raise ValueError(f"the paper has no experiment {name!r} here: give one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def counts(experiment: Experiment, sizes: Sequence[Size]) -> list[dict[str, Any]]:
    """Params and madds of networks of the experiment, untrained, beside what the paper prints: one dict a network."""
    from gossamer.experiments.networks import counted

    rows = []
    for size in sizes:
        cost = counted(replace(experiment.base, width=size.width, density=size.density))
        printed = experiment.printed.get(size.name)
        rows.append(
            {
                "network": size.name,
                "params": cost.params,
                "paper_params": printed.params if printed else None,
                "madds": cost.madds,
                "paper_madds": printed.madds if printed else None,
            }
        )
    return rows


class Beside(TypedDict):
    """A table of the paper's numbers and ours, as text, for the report."""

    note: str
    headings: list[str]
    rows: list[list[str]]


def beside(experiment: Experiment, rows: Sequence[Row]) -> Beside:
    """Our results next to the paper's."""
    table = []
    for point in summarise(rows):
        name = Size(point.method, point.alpha, point.width, point.density).name
        printed = experiment.printed.get(name)
        theirs = [printed.params, printed.madds, str(printed.precision)] if printed else ["", "", ""]
        ours = [f"{point.params:,.0f}", f"{point.madds:,.0f}", f"{100 * point.accuracy:.1f}"]
        table.append([name, *(text for pair in zip(ours, theirs, strict=True) for text in pair)])
    config: Row = next((row["config"] for row in done(rows) if row.get("config")), {})
    return Beside(
        note=f"The paper: {experiment.says}. Ours: {config.get('data')}, {config.get('epochs')} epochs, batch "
        f"{config.get('batch_size')}. Accuracies of another data set or schedule cannot be compared with the paper's.",
        headings=["network", "params", "paper", "madds", "paper", "accuracy, %", "paper"],
        rows=table,
    )
