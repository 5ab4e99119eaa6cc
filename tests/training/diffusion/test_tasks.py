from collections import Counter

import numpy as np
import pytest
import torch

from schemas.errors import UsageError
from schemas.sample import Regime
from training.data.order import SampleOrder, Schedule
from training.diffusion.flow import draw, shift_sigma
from training.diffusion.tasks import (
    CONDITION_SIGMA,
    OFFICIAL_TASKS,
    TASKS,
    Task,
    TaskConfig,
    draw_task,
    given_views,
    plan_frames,
    register,
    sampling_task,
    views_given,
)

SIGMA = torch.tensor([0.9, 0.3])


def test_condition_level_is_the_fifteenth_smallest_training_step() -> None:
    assert float(shift_sigma(torch.tensor(15 / 1000, dtype=torch.float64))) == pytest.approx(CONDITION_SIGMA, abs=5e-8)


def test_img2tex_gives_one_view_and_generates_the_rest() -> None:
    task = TASKS["img2tex"]
    given = given_views(task, torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.7, 0.8, 0.9, 0.2]]))
    assert given.tolist() == [[False, True, False, False], [False, False, False, True]]
    plan = plan_frames(task, given, SIGMA)
    assert plan.generated.tolist() == [[True, False, True, True, True], [True, True, True, False, True]]
    assert torch.equal(plan.condition, ~plan.generated)
    assert torch.allclose(plan.timestep[0], torch.tensor([900.0, 70.7547, 900.0, 900.0, 900.0]))
    assert torch.allclose(plan.sigma[1], torch.tensor([0.3, 0.3, 0.3, 0.0707547, 0.3]))


def test_given_views_that_are_dropped_are_pure_noise_without_a_loss() -> None:
    task = TASKS["img2tex"]
    given = given_views(task, torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.7, 0.8, 0.9, 0.2]]))
    kept, plan = plan_frames(task, given, SIGMA), plan_frames(task, given, SIGMA, torch.tensor([True, False]))
    assert torch.equal(plan.generated, kept.generated) and not plan.condition[0].any()
    assert torch.allclose(plan.sigma[0], torch.tensor([0.9, 1.0, 0.9, 0.9, 0.9]))
    assert torch.equal(plan.sigma[1], kept.sigma[1]) and torch.equal(plan.condition[1], kept.condition[1])


def test_geo2mv_generates_all_views_and_leaves_the_uv_frame_pure_noise() -> None:
    task = TASKS["geo2mv"]
    plan = plan_frames(task, given_views(task, torch.rand(2, 4)), SIGMA)
    assert not plan.condition.any()
    assert plan.generated.tolist() == [[True] * 4 + [False]] * 2
    assert plan.timestep[:, 4].tolist() == [1000.0, 1000.0]
    assert not task.needs_uv
    assert Regime.MV_ONLY in task.regimes


@pytest.mark.parametrize(
    ("name", "condition", "generated", "uv_timestep"),
    [
        ("geo2mvtex", [False] * 5, [True] * 5, 900.0),
        ("mv2tex", [True] * 4 + [False], [False] * 4 + [True], 900.0),
        ("img2mv", [False, True, False, False, False], [True, False, True, True, False], 1000.0),
    ],
)
def test_what_is_given_and_what_is_made(
    name: str, condition: list[bool], generated: list[bool], uv_timestep: float
) -> None:
    task = TASKS[name]
    plan = plan_frames(task, given_views(task, torch.tensor([[0.3, 0.1, 0.9, 0.5]])), SIGMA[:1])
    assert plan.condition.tolist() == [condition]
    assert plan.generated.tolist() == [generated]
    assert plan.timestep[0, 4].item() == pytest.approx(uv_timestep)
    levels = torch.where(plan.condition[0, :4], 70.7547, 900.0)
    assert torch.allclose(plan.timestep[0, :4], levels)


def test_multi_view_samples_teach_what_needs_no_uv_map() -> None:
    assert {task.name for task in TASKS.values() if Regime.MV_ONLY in task.regimes} == {"geo2mv", "img2mv"}
    assert {task.name for task in TASKS.values() if not task.needs_uv} == {"geo2mv", "img2mv"}
    assert all(Regime.TEXTURED in task.regimes for task in TASKS.values())


@pytest.mark.parametrize(
    ("given", "with_uv", "name"),
    [(0, True, "geo2mvtex"), (1, True, "img2tex"), (2, True, "some2tex"), (3, True, "some2tex"), (4, True, "mv2tex"),
     (0, False, "geo2mv"), (1, False, "img2mv")],
)  # fmt: skip
def test_the_task_of_a_sampling_run_follows_from_what_is_given(given: int, with_uv: bool, name: str) -> None:
    assert sampling_task(given, 4, with_uv).name == name


def test_the_default_mixture_is_the_documented_one_and_the_official_one_has_two_tasks() -> None:
    cfg = TaskConfig()
    textured = {"img2tex": 0.5, "geo2mvtex": 0.2, "mv2tex": 0.1, "geo2mv": 0.1, "img2mv": 0.1}
    assert (cfg.textured, cfg.mv_only) == (textured, {"geo2mv": 0.5, "img2mv": 0.5})
    assert (OFFICIAL_TASKS.textured, OFFICIAL_TASKS.mv_only) == ({"img2tex": 1.0}, {"geo2mv": 1.0})


def test_every_view_is_the_given_one_equally_often() -> None:
    order = torch.rand(4000, 4, generator=torch.Generator().manual_seed(1))
    counts = given_views(TASKS["img2tex"], order).sum(dim=0)
    assert counts.sum() == 4000
    # 99 % for the four counts together: each within the two-sided 0.25 % point of the binomial.
    assert (counts - 1000).abs().max() < 3.02 * (4000 * 0.25 * 0.75) ** 0.5


def test_some_views_are_given_evenly_in_number_and_choice() -> None:
    """Two or three of four, each pair and each triple equally often, whatever their order has to say."""
    order = torch.rand(6000, 4, generator=torch.Generator().manual_seed(2))
    given = given_views(TASKS["some2tex"], order)
    chosen = Counter(tuple(row.nonzero().flatten().tolist()) for row in given)
    assert {len(views) for views in chosen} == {2, 3} and len(chosen) == 6 + 4
    # 99 % for the ten counts together: each within the two-sided 0.1 % point of the binomial.
    for views, count in chosen.items():
        share = 1 / 12 if len(views) == 2 else 1 / 8
        assert abs(count - 6000 * share) < 3.29 * (6000 * share * (1 - share)) ** 0.5, views
    assert given_views(TASKS["some2tex"], torch.rand(50, 2)).sum(dim=1).unique().tolist() == [1]
    assert given_views(TASKS["some2tex"], torch.rand(200, 12)).sum(dim=1).unique().tolist() == list(range(2, 12))


def test_some_views_are_trained_as_they_are_sampled() -> None:
    """The same roles and noise levels, and the views that a hint is made for are those that the batch gives."""
    cfg = TaskConfig(textured={"some2tex": 1.0})
    draws = draw(3, (7, 8), [(16, 4, 2, 2)])
    given = given_views(TASKS["some2tex"], draws.view_order)
    trained = plan_frames(TASKS["some2tex"], given, SIGMA)
    sampled = plan_frames(sampling_task(int(given[0].sum()), 4, True), given[:1], SIGMA[:1])
    assert torch.equal(sampled.timestep, trained.timestep[:1])
    for row, number in zip(given, (7, 8), strict=True):
        assert views_given(cfg, Regime.TEXTURED, 3, 0, number, 4) == tuple(row.nonzero().flatten().tolist())


def test_a_task_is_added_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.diffusion.tasks.TASKS", dict(TASKS))
    register(Task(name="pair2mv", condition_views=2, needs_uv=False))
    cfg = TaskConfig(mv_only={"pair2mv": 1.0})
    assert draw_task(cfg, Regime.MV_ONLY, 0, 3).condition_views == 2
    assert len(views_given(cfg, Regime.MV_ONLY, 0, 3, 5, 4)) == 2
    with pytest.raises(ValueError, match="there is a task 'pair2mv' already"):
        register(Task(name="pair2mv", condition_views=3, needs_uv=False))


def test_tasks_are_drawn_by_weight_and_by_batch_number_alone() -> None:
    cfg = TaskConfig(textured={"img2tex": 3.0, "geo2mv": 1.0})
    names = [draw_task(cfg, Regime.TEXTURED, 5, number).name for number in range(2000)]
    assert abs(names.count("img2tex") - 1500) < 2.58 * (2000 * 0.75 * 0.25) ** 0.5
    assert [draw_task(cfg, Regime.TEXTURED, 5, number).name for number in (7, 1999, 0)] == [
        names[7],
        names[1999],
        names[0],
    ]
    assert {draw_task(cfg, Regime.MV_ONLY, 5, number).name for number in range(50)} == {"geo2mv", "img2mv"}


def test_tasks_are_independent_of_regimes_and_order() -> None:
    """Their generators share seeds; but for batch 0, no draw has to do with another that it meets."""
    cfg, seeds = TaskConfig(textured={"img2tex": 1.0, "geo2mv": 1.0}), range(300)
    schedules, orders = [Schedule(seed, 0.5) for seed in seeds], [SampleOrder((32,), seed, 16) for seed in seeds]
    regimes = np.array([[schedule(n)[0] is Regime.TEXTURED for n in range(1, 32)] for schedule in schedules], float)
    tasks = np.array([[draw_task(cfg, Regime.TEXTURED, s, n).name == "geo2mv" for n in range(1, 32)] for s in seeds])
    assert abs(np.corrcoef(regimes.ravel(), tasks.ravel())[0, 1]) < 4 / regimes.size**0.5
    places = np.array([[order(n)[1] for n in range(1, 32)] for order in orders], float)
    together = np.corrcoef(regimes.T, places.T)[:31, 31:] * len(seeds) ** 0.5
    assert np.abs(together).max() < 5 and together.std() < 1.1


def test_a_task_that_its_samples_cannot_teach_is_refused() -> None:
    with pytest.raises(UsageError, match="'img2tex' is no task for mv_only samples; there are: geo2mv, img2mv"):
        TaskConfig(mv_only={"img2tex": 1.0})


@pytest.mark.parametrize("weights", [{"img2tex": -1.0, "geo2mv": 2.0}, {"img2tex": 0.0}, {"img2tex": float("nan")}])
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"weights of tasks for textured samples are .* give 0 or more, one above 0"):
        TaskConfig(textured=weights)
