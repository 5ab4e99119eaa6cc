"""What is known of a run before it starts: its whole configuration, the sizes of its images, its cost, its strategy."""

from dataclasses import dataclass, replace

from training.cost import Cost, estimate
from training.data import leading_dataset
from training.presets import TrainConfig
from training.sources import ImageSizes, image_sizes
from training.start import with_architecture
from training.strategies import Choice, check_run, choose, memory_of, own_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Of one run."""

    cfg: TrainConfig
    """With the architecture of the weights that it starts from."""
    sizes: ImageSizes
    cost: Cost
    strategy: Choice


def plan_run(cfg: TrainConfig, sizes: ImageSizes | None = None) -> Plan:
    """sizes: those of the images; None: as the dataset has them.

    Raises:
        UsageError: options contradict each other.
        UserError: there is no dataset, or it or the weights to start from do not fit.
    """
    check_run(cfg)
    cfg = replace(cfg, model=with_architecture(cfg.model))
    sizes = sizes or image_sizes(leading_dataset(cfg.data))
    cost = estimate(cfg, sizes)
    strategy = choose(cfg, cost, memory_of(own_device(cfg.run.accelerator)))
    return Plan(cfg=cfg, sizes=sizes, cost=cost, strategy=strategy)
