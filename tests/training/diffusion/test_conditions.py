"""View hint and positions in space in the transformer: off they change nothing, on they do what they are for."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from schemas.errors import UserError
from tests.support.tiny_transformer import TINY
from training.config import PRESETS
from training.diffusion.latents import BranchLatents, Extensions
from training.model.init import ModelConfig, make_model
from training.model.rope import mean_points, rope_of_points, rotate
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import export_released, mark_trained, save_model

RGB, GEOMETRY, HINT, POINTS = 4, 8, 5, 4
"""Channels of the tiny model's input, in order."""
BOTH = {"view_hint": True, "position_rope": True}


def tiny_model(**changes):
    torch.manual_seed(0)
    model = SeqTexTransformer3DModel(**TINY | changes)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            draw = torch.Generator().manual_seed(sum(name.encode()))
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def inputs(depth, views=3, grid=(4, 6), uv_grid=(8, 4), batch=2):
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, depth, views, *grid, generator=draw),
        torch.randn(batch, depth, 1, *uv_grid, generator=draw),
        torch.rand(batch, views + 1, generator=draw) * 1000,
        torch.randn(batch, 5, 8, generator=draw),
    )


def released_part(arguments):
    mv, uv, *rest = arguments
    return (mv[:, : RGB + GEOMETRY], uv[:, : RGB + GEOMETRY], *rest)


@pytest.mark.parametrize(
    ("changes", "depth"),
    [({}, 12), ({"view_hint": True}, 17), ({"position_rope": True}, 16), (BOTH, 21)],
)
def test_the_input_is_as_deep_as_what_the_model_takes(changes, depth):
    model = tiny_model(**changes)
    assert model.in_depth == depth
    model(*inputs(depth))
    with pytest.raises(ValueError, match=f"takes {depth} channels"):
        model(*inputs(depth + 1))


def test_released_weights_with_a_view_hint_give_the_same_output_before_training(tmp_path):
    released = tiny_model()
    save_model(released, tmp_path / "released")
    model = SeqTexTransformer3DModel.from_pretrained(tmp_path / "released", add_view_hint=True)
    arguments = inputs(RGB + GEOMETRY + HINT)
    for found, expected in zip(model(*arguments), released(*released_part(arguments)), strict=True):
        assert torch.equal(found, expected)
    assert "hint_patch_embedding.weight" in mark_trained(model, "released")
    sum(flow.square().mean() for flow in model(*arguments)).backward()
    assert model.hint_patch_embedding.weight.grad.abs().max() > 0, "it learns from the first step on"
    save_model(model, tmp_path / "own")
    again = SeqTexTransformer3DModel.from_pretrained(tmp_path / "own")
    assert again.config["view_hint"] is True
    assert all(torch.equal(a, b) for a, b in zip(again(*arguments), model(*arguments), strict=True))


def test_a_run_from_released_weights_may_add_the_hint_but_not_turn_otherwise(tmp_path):
    save_model(tiny_model(), tmp_path / "released")
    cfg = ModelConfig(start="seqtex", start_path=str(tmp_path / "released"), lora_rank=0)
    assert make_model(replace(cfg, view_hint=True), 0).config["view_hint"]
    assert not make_model(cfg, 0).config["view_hint"]
    with pytest.raises(UserError, match="position_rope=False"):
        make_model(replace(cfg, position_rope=True), 0)
    with pytest.raises(UserError, match=r"leave out model\.position_rope"):
        make_model(ModelConfig(position_rope=True), 0)
    save_model(tiny_model(view_hint=True), tmp_path / "own")
    with pytest.raises(UserError, match="view_hint=True"):
        make_model(replace(cfg, start_path=str(tmp_path / "own")), 0)


def test_presets_that_start_from_released_weights_do_without(tmp_path):
    for name, preset in PRESETS.items():
        extras = preset.model.view_hint, preset.model.position_rope
        assert extras == ((True, True) if name in ("tiny", "small") else (False, False))


def test_the_hint_reaches_its_own_tokens():
    model, arguments = tiny_model(view_hint=True), inputs(RGB + GEOMETRY + HINT)
    other = [x.clone() for x in arguments]
    other[1][:, RGB + GEOMETRY :] += 1
    views, maps = model(*arguments)
    same_views, other_maps = model(*other)
    assert torch.equal(views, same_views), "views never read the UV map, nor its hint"
    assert (maps - other_maps).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"view_hint": True}, {"position_rope": True}])
def test_the_released_layout_cannot_hold_them(tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        export_released(tiny_model(**changes), tmp_path / "out")


def test_the_layout_of_a_uv_map_does_not_matter_to_a_model_with_positions_in_space():
    """Charts moved to other places in the map, with what they hold, come out at those places."""
    model = tiny_model(position_rope=True)
    mv, uv, timestep, text = inputs(RGB + GEOMETRY + POINTS)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))

    def moved(image):
        tokens = rearrange(image, "b c f (h p) (w q) -> b c f (h w) p q", p=2, q=2)[:, :, :, order]
        return rearrange(tokens, "b c f (h w) p q -> b c f (h p) (w q)", h=4)

    torch.testing.assert_close(model(mv, moved(uv), timestep, text)[1], moved(model(mv, uv, timestep, text)[1]))
    plain = tiny_model()
    mv, uv, *rest = released_part((mv, uv, timestep, text))
    assert not torch.allclose(plain(mv, moved(uv), *rest)[1], moved(plain(mv, uv, *rest)[1]), atol=1e-3)


def test_rotation_by_position_makes_products_depend_on_the_way_between_points():
    places = torch.tensor([[[[0.1, 0.2, -0.3], [0.4, 0.1, 0.3], [-0.5, 0.6, 0.0], [-0.2, 0.5, 0.6]]]])
    rope = rope_of_points(0, places, 24)
    query, key = torch.randn(24), torch.randn(24)
    queries, keys = (rotate(x.expand(1, 4, 1, 24), rope)[0, :, 0] for x in (query, key))
    assert torch.allclose(queries.norm(dim=-1), query.norm().expand(4), atol=1e-5)
    products = queries @ keys.T
    torch.testing.assert_close(products[0, 1], products[2, 3], atol=1e-4, rtol=0)  # the same way: (.3, -.1, .6)
    assert (products[0, 1] - products[0, 2]).abs() > 1e-3
    later = rope_of_points(1, places, 24)
    assert not torch.equal(later.cos, rope.cos), "the frame still counts"


def test_a_token_is_where_its_covered_cells_are():
    cells = torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.25], [9.0, 9.0, 9.0, 0.0], [0.0, 0.0, 1.0, 0.25]])
    found = mean_points(cells[None, None, None])
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.5, 0.25, 0.25]))
    assert not mean_points(torch.zeros(1, 1, 1, 4, 4)).any()


def test_a_batch_without_what_the_model_takes_is_refused():
    branch = BranchLatents(rgb=torch.zeros(1, 16, 1, 2, 2), geometry=torch.zeros(1, 32, 1, 2, 2))
    assert branch.beside(Extensions()) is not None
    for name in ("hint", "points"):
        with pytest.raises(UserError, match=name):
            branch.beside(Extensions(images=("hint",) * (name == "hint"), position_rope=name == "points"))
