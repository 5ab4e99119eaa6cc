"""Tasks of the network: which frames are given, which are generated, which are unused.

A sample's frames are its V views followed by its UV maps: the base colour, and what else the model generates (V + 1
frames or more). Each frame has its own noise level: a
condition frame sits at `CONDITION_SIGMA`, a generated frame at the level drawn for its sample, and a frame that is
unused (the UV map of some tasks, a given view that is dropped) is pure noise."""

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from schemas.errors import UsageError
from schemas.sample import Regime
from training.diffusion.flow import draw_view_order

TRAIN_STEPS = 1000
"""timestep = TRAIN_STEPS * sigma (released code)."""
CONDITION_SIGMA = 0.0707547
"""Noise level of a condition frame: the 15th smallest training step at shift 5 (released code), 0.075 / 1.06."""
MAX_VIEWS = 12
"""The most views that a sample may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: which frames are given and which are generated."""

    name: str
    condition_views: int
    """Number of views that are given, drawn at random; at most all of them (`MAX_VIEWS`: always all). The other views
    are generated."""
    needs_uv: bool
    """The UV map is generated; False: the UV branch need not run."""
    draws_count: bool = False
    """The number of given views is drawn for each sample, evenly from `condition_views` to all but one."""

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Return the regimes whose samples can be trained on."""
        return (Regime.TEXTURED,) if self.needs_uv else (Regime.TEXTURED, Regime.MV_ONLY)


TASKS = {
    task.name: task
    for task in (
        Task(name="img2tex", condition_views=1, needs_uv=True),
        Task(name="geo2mv", condition_views=0, needs_uv=False),
        Task(name="geo2mvtex", condition_views=0, needs_uv=True),
        Task(name="mv2tex", condition_views=MAX_VIEWS, needs_uv=True),
        Task(name="img2mv", condition_views=1, needs_uv=False),
        Task(name="some2tex", condition_views=2, needs_uv=True, draws_count=True),
    )
}
"""Tasks by name; `register` adds more."""


def register(task: Task) -> Task:
    """Add a task, which `TaskConfig` then takes by its name. Raises ValueError if there is one of that name."""
    if task.name in TASKS:
        raise ValueError(f"there is a task {task.name!r} already; give another name")
    TASKS[task.name] = task
    return task


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """Use and noise level of each frame of a batch."""

    condition: Bool[Tensor, "batch frames"]
    generated: Bool[Tensor, "batch frames"]
    """The frames that enter the loss."""
    sigma: Float[Tensor, "batch frames"]

    def to(self, device: torch.device) -> "FramePlan":
        """Move the plan to a device, without waiting for it."""
        tensors = {field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        return FramePlan(**tensors)

    @property
    def timestep(self) -> Float[Tensor, "batch frames"]:
        """In [0, 1000]."""
        return self.sigma * TRAIN_STEPS


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Weights with which tasks are drawn."""

    textured: dict[str, float] = field(
        default_factory=lambda: {"img2tex": 0.5, "geo2mvtex": 0.2, "mv2tex": 0.1, "geo2mv": 0.1, "img2mv": 0.1}
    )
    """Weights for batches of textured samples (ours)."""
    mv_only: dict[str, float] = field(default_factory=lambda: {"geo2mv": 0.5, "img2mv": 0.5})
    """Weights for multi-view-only batches (ours)."""

    def __post_init__(self) -> None:
        for regime in Regime:
            weights = self.weights(regime)
            if weights and not (min(weights.values()) >= 0 and 0 < sum(weights.values()) < float("inf")):
                raise UsageError(f"weights of tasks for {regime} samples are {weights}; give 0 or more, one above 0")
            for name in weights:
                if name not in TASKS or regime not in TASKS[name].regimes:
                    known = ", ".join(task.name for task in TASKS.values() if regime in task.regimes)
                    raise UsageError(f"{name!r} is no task for {regime} samples; there are: {known}")

    def weights(self, regime: Regime) -> dict[str, float]:
        """Return the weights for batches of a regime."""
        return self.textured if regime is Regime.TEXTURED else self.mv_only


OFFICIAL_TASKS = TaskConfig(textured={"img2tex": 1.0}, mv_only={"geo2mv": 1.0})
"""The two tasks of the released training."""


def draw_task(cfg: TaskConfig, regime: Regime, seed: int, batch_number: int) -> Task:
    """Draw the task of a global batch: every rank draws the same. Its number is the first of the generator that seeds
    chunk `batch_number` of `Schedule`: the task of batch 0 alone goes with a regime that it meets. It stays so, as a
    run that resumes must draw what it drew."""
    weights = cfg.weights(regime)
    shares = np.array(list(weights.values()), dtype=np.float64)
    draw = np.random.default_rng((seed, batch_number)).choice(len(shares), p=shares / shares.sum())
    return TASKS[list(weights)[draw]]


def sampling_task(views_given: int, views: int, with_uv: bool) -> Task:
    """Choose the task of a sampling run by what is given and wanted."""
    if not with_uv:
        return TASKS["img2mv" if views_given else "geo2mv"]
    if views_given == 0:
        return TASKS["geo2mvtex"]
    if views_given == views:
        return TASKS["mv2tex"]
    return TASKS["img2tex" if views_given == 1 else "some2tex"]


def given_views(task: Task, view_order: Float[Tensor, "batch views"]) -> Bool[Tensor, "batch views"]:
    """Choose the condition views: those that rank first in `view_order`, one uniform number per view."""
    rank, views = view_order.argsort(dim=1).argsort(dim=1), view_order.shape[1]
    if not task.draws_count:
        return rank < task.condition_views
    # the largest of n uniform numbers to the power of n is uniform, and independent of their order
    uniform = view_order.amax(dim=1, keepdim=True) ** views
    most = max(1, views - 1)
    fewest = min(task.condition_views, most)
    return rank < (fewest + torch.floor(uniform * (most - fewest + 1))).clamp(max=most)


def views_given(cfg: TaskConfig, regime: Regime, seed: int, batch: int, sample: int, views: int) -> tuple[int, ...]:
    """Choose the views that a sample is given in training before its batch is made: their numbers are those that
    `draw_task` and `given_views` choose then."""
    task = draw_task(cfg, regime, seed, batch)
    chosen = given_views(task, draw_view_order(seed, sample, views)[None])[0]
    return tuple(chosen.nonzero().flatten().tolist())


def plan_frames(
    task: Task,
    given: Bool[Tensor, "batch views"],
    sigma: Float[Tensor, " batch"],
    dropped: Bool[Tensor, " batch"] | None = None,
    maps: int = 1,
) -> FramePlan:
    """Assign roles and noise levels: the views `given` are the condition, what is generated is at `sigma`. dropped:
    samples whose given views are neither, but unused; None: no sample. maps: frames of the UV branch."""
    uv = torch.full_like(given[:, :1], task.needs_uv).expand(-1, maps)
    seen = given if dropped is None else given & ~dropped[:, None]
    condition, generated = torch.cat([seen, uv & False], dim=1), torch.cat([~given, uv], dim=1)
    level = torch.where(condition, CONDITION_SIGMA, sigma[:, None])
    level = torch.where(condition | generated, level, 1.0)
    return FramePlan(condition=condition, generated=generated, sigma=level)
