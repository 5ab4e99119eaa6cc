"""The transformer: parity with the released behaviour, the asymmetry of its branches, gradients and precision."""

import json

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support.tiny_transformer import TINY
from training.model.lora import merge_lora, unmerge_lora
from training.model.rope import rope_of_both, rope_of_grid, rotate
from training.model.seqtex import SeqTexTransformer3DModel

CPU = torch.device("cpu")


def tiny_model(seed=0, **changes):
    """A small model in which no weight is zero, so that every path carries a signal."""
    torch.manual_seed(seed)
    model = SeqTexTransformer3DModel(**TINY | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


def inputs(seed=1, batch=2, views=3, size=4, uv_size=8):
    torch.manual_seed(seed)
    return (
        torch.randn(batch, 12, views, size, size),
        torch.randn(batch, 12, 1, uv_size, uv_size),
        torch.rand(batch, views + 1) * 1000,
        torch.randn(batch, 5, 8),
    )


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def golden(golden_dir):
    path = golden_dir / "seqtex_tiny_a.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    lora = json.loads(metadata["lora"])
    config = json.loads(metadata["config"]) | {"lora_rank": lora["r"], "lora_alpha": lora["alpha"]}
    return config, load_file(path)


def golden_model(golden):
    config, tensors = golden
    model = SeqTexTransformer3DModel(**config)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("state.")})
    return model.requires_grad_(False)


def golden_errors(model, tensors):
    found = model(*(tensors[f"in.{name}"] for name in ("mv", "uv", "timestep", "text")))
    return [relative_error(output, tensors[f"out.{name}"]) for name, output in zip(("mv", "uv"), found, strict=True)]


def test_reproduces_the_reference_outputs_with_lora_unmerged_and_merged(golden):
    model = golden_model(golden)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert max(golden_errors(model, golden[1])) < 1e-5
    merge_lora(model)
    assert not torch.equal(model.state_dict()["blocks.0.attn1.to_q.base_layer.weight"],
                           plain["blocks.0.attn1.to_q.base_layer.weight"])  # fmt: skip
    assert max(golden_errors(model, golden[1])) < 1e-5
    merge_lora(model)
    unmerge_lora(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=1e-5)
    assert max(golden_errors(model, golden[1])) < 1e-5


def test_the_reference_tells_lora_from_no_lora(golden):
    """Far above the 1e-5 of parity; the UV map feels LoRA only through the views."""
    model = golden_model(golden)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.zero_()
    of_views, of_uv = golden_errors(model, golden[1])
    assert of_views > 1e-2
    assert of_uv > 1e-4


def test_names_and_shapes_of_the_released_checkpoint(golden_dir):
    reference = json.loads((golden_dir / "seqtex_1p3b_keys.json").read_text())
    with torch.device("meta"):
        model = SeqTexTransformer3DModel(**reference["config"], lora_rank=128)
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(found) == 1760
    assert found == {name: shape for name, (shape, _) in reference["params"].items()}


def test_view_output_never_depends_on_the_uv_map():
    model, (mv, uv, timestep, text) = tiny_model(), inputs()
    other_timestep = timestep.clone()
    other_timestep[:, -1] = 1000
    mv_flow, uv_flow = model(mv, uv, timestep, text)
    other_mv_flow, other_uv_flow = model(mv, torch.randn_like(uv), other_timestep, text)
    assert torch.equal(mv_flow, other_mv_flow)
    assert not torch.allclose(uv_flow, other_uv_flow)


@pytest.mark.parametrize("changed", ["view rgb", "view position", "text", "view timestep"])
def test_uv_output_reads_the_views_and_the_text(changed):
    model, (mv, uv, timestep, text) = tiny_model(), inputs()
    before = model(mv, uv, timestep, text)[1]
    if changed == "view rgb":
        mv[:, :4] += 1
    elif changed == "view position":
        mv[:, 4:8] += torch.randn_like(mv[:, 4:8])
    elif changed == "text":
        text = torch.randn_like(text)
    else:
        timestep[:, 0] = 3
    assert relative_error(model(mv, uv, timestep, text)[1], before) > 1e-4


def test_one_text_token_conditions_as_many_equal_ones_do():
    model, (mv, uv, timestep, text) = tiny_model(), inputs()
    results = []
    for length in (1, 3):
        flows = model(mv, uv, timestep, text[:, :1].expand(-1, length, -1))
        gradients = torch.autograd.grad(sum(flow.square().sum() for flow in flows), list(model.blocks[0].parameters()),
                                        allow_unused=True)  # fmt: skip
        results.append((*flows, gradients))
    (mv_one, uv_one, of_one), (mv_many, uv_many, of_many) = results
    assert max(relative_error(mv_one, mv_many), relative_error(uv_one, uv_many)) < 1e-5
    for (name, _), one, many in zip(model.blocks[0].named_parameters(), of_one, of_many, strict=True):
        if one is None:  # a choice among equals: its gradient is zero
            assert name.startswith(("attn2.to_q", "attn2.to_k", "attn2.norm_", "norm2", "normuv2")), name
            assert many.abs().max() < 1e-4 * max(gradient.abs().max() for gradient in of_many)
        else:
            torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-4 * many.abs().max().item())


def test_skipping_the_uv_branch_gives_the_same_view_output_and_gradients():
    model, (mv, uv, timestep, text) = tiny_model(lora_rank=2), inputs()
    results = []
    for uv_input in (uv, None):
        model.zero_grad(set_to_none=True)
        flow, uv_flow = model(mv, uv_input, timestep, text)
        flow.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((flow, gradients))
        assert (uv_flow is None) == (uv_input is None)
    (full, full_gradients), (skipped, skipped_gradients) = results
    assert torch.equal(full, skipped)
    for name, gradient in full_gradients.items():
        if gradient is None:
            assert skipped_gradients[name] is None, name
        else:
            assert torch.equal(gradient, skipped_gradients[name]), name


def test_gradients_reach_the_right_parameters():
    model, arguments = tiny_model(lora_rank=2), inputs()
    mv_flow, uv_flow = model(*arguments)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    of_views = torch.autograd.grad(mv_flow.square().sum(), parameters, retain_graph=True, allow_unused=True)
    of_uv = torch.autograd.grad(uv_flow.square().sum(), parameters, allow_unused=True)
    untouched_by_views = {name for name, gradient in zip(names, of_views, strict=True) if gradient is None}
    assert untouched_by_views == {name for name in names if "uv" in name}
    untouched_by_uv = {name for name, gradient in zip(names, of_uv, strict=True) if gradient is None}
    last = "blocks.1."
    assert untouched_by_uv == {
        name for name in names if name == "scale_shift_table" or name.startswith((f"{last}norm2", f"{last}ffn.net"))
    }
    for name, gradient in [*zip(names, of_views, strict=True), *zip(names, of_uv, strict=True)]:
        assert gradient is None or gradient.abs().max() > 0, name


def test_gradient_agrees_with_finite_differences():
    model = tiny_model(num_layers=1).double()
    mv, uv, timestep, text = (tensor.double() for tensor in inputs(batch=1, views=2))
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    direction = [torch.randn_like(parameter) for parameter in parameters]

    def loss(step):
        with torch.no_grad():
            for parameter, origin, along in zip(parameters, start, direction, strict=True):
                parameter.copy_(origin + step * along)
        mv_flow, uv_flow = model(mv, uv, timestep, text)
        return mv_flow.square().mean() + uv_flow.sin().mean()

    gradients = torch.autograd.grad(loss(0.0), parameters)
    slope = sum((gradient * along).sum() for gradient, along in zip(gradients, direction, strict=True))
    step = 1e-5
    measured = (loss(step) - loss(-step)) / (2 * step)
    torch.testing.assert_close(measured, slope, rtol=1e-6, atol=0)


def test_gradient_checkpointing_changes_nothing():
    model, arguments = tiny_model(), inputs()
    gradients = []
    for checkpointing in (False, True):
        (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
        mv_flow, uv_flow = model(*arguments)
        loss = mv_flow.square().mean() + uv_flow.square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


@pytest.mark.parametrize(("views", "grid", "uv"), [(4, (2, 3), (5, 4)), (1, (1, 1), (8, 8))])
def test_rotary_positions_agree_with_wan_and_uv_follows_the_views(views, grid, uv):
    head_dim, longest = 20, 16
    wan = WanRotaryPosEmbed(head_dim, (1, 2, 2), longest)

    def wan_angles(frames, height, width):
        latents = torch.empty(1, 1, frames, 2 * height, 2 * width)
        cos, sin = wan(latents)
        return cos[0, :, 0, ::2].unflatten(0, (frames, -1)), sin[0, :, 0, 1::2].unflatten(0, (frames, -1))

    both = rope_of_both((views, *grid), (1, *uv), head_dim, CPU)
    of_views = views * grid[0] * grid[1]
    for found, of_grid, of_uv_grid in zip(
        (both.cos, both.sin), wan_angles(views, *grid), wan_angles(views + 1, *uv), strict=True
    ):
        torch.testing.assert_close(found[:of_views, 0], of_grid.flatten(0, 1))
        torch.testing.assert_close(found[of_views:, 0], of_uv_grid[views])
    torch.testing.assert_close(rope_of_grid(views, 1, *uv, head_dim, CPU).cos, both.cos[of_views:])


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone():
    rope = rope_of_grid(0, 1, 1, 9, 12, CPU)
    query, key = torch.randn(1, 1, 2, 12, dtype=torch.float64), torch.randn(1, 1, 2, 12, dtype=torch.float64)
    queries, keys = (rotate(x.expand(1, 9, 2, 12), rope) for x in (query, key))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm(dim=-1).expand(1, 9, 2), atol=1e-6, rtol=0)
    near, far = (queries[:, 0] * keys[:, 3]).sum(-1), (queries[:, 5] * keys[:, 8]).sum(-1)
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    assert not torch.allclose(near, (queries[:, 0] * keys[:, 4]).sum(-1), atol=1e-3)


def test_inference_first_does_not_spoil_training():
    model, (mv, uv, timestep, text) = tiny_model(), inputs(views=2, size=12, uv_size=20)
    rope_of_grid.cache_clear()
    rope_of_both.cache_clear()
    with torch.inference_mode():
        model(mv, uv, timestep, text)
    model(mv, uv, timestep, text)[1].sum().backward()
    assert model.patch_embedding.weight.grad is not None


def test_bfloat16_autocast_stays_close_and_keeps_the_clock_exact():
    model, arguments = tiny_model(), inputs()
    exact = model(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*arguments)
        embedding, modulation = model.condition_embedder.time(arguments[2])
    assert embedding.dtype == modulation.dtype == torch.float32
    assert torch.equal(embedding, model.condition_embedder.time(arguments[2])[0])
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == torch.bfloat16
        error = (found.float() - expected).norm() / expected.norm()
        assert 1e-5 < error < 0.05


def test_a_new_model_is_untrained_but_finite_and_sees_no_geometry():
    model, arguments = SeqTexTransformer3DModel(**TINY), inputs()
    assert all(flow.abs().max() == 0 for flow in model(*arguments))
    assert all(block.geometry_caster.weight.abs().max() == 0 for block in model.blocks)
    assert all(block.attn1.to_q.weight.std() > 0.05 for block in model.blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (2, 2, 2)}, "own timestep"),
        ({"qk_norm": "layer_norm"}, "rms_norm_across_heads"),
        ({"attention_head_dim": 4}, "at least 6"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SeqTexTransformer3DModel(**TINY | changes)


def test_bad_latents_are_refused():
    _, uv, timestep, text = inputs()
    model = tiny_model(rope_max_seq_len=4)
    with pytest.raises(ValueError, match="multiples of 2 x 2"):
        model(torch.randn(2, 12, 3, 5, 4), uv, timestep, text)
    with pytest.raises(ValueError, match="takes 12 channels"):
        model(torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 1, 4, 4), timestep, text)
    with pytest.raises(ValueError, match="rope_max_seq_len=4"):
        model(torch.randn(2, 12, 3, 4, 4), torch.randn(2, 12, 1, 16, 4), timestep, text)
