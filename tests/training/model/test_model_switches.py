"""The transformer against its literal twin, its ablation switches, sizes, and what checkpointing and compiling keep."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.literal import literal_forward
from schemas.errors import UsageError
from tests.support.tiny_transformer import TINY
from training.arithmetic import attention
from training.model.seqtex import SeqTexTransformer3DModel
from training.model.weights import mark_trained, save_model

REPO = Path(__file__).resolve().parents[3]
SWITCHES = [
    {},
    {"geometry_attention": "mv"},
    {"geometry_attention": "off"},
    {"uv_branch": "shared"},
    {"uv_branch": "shared", "geometry_attention": "mv"},
]


def tiny_model(**changes):
    torch.manual_seed(0)
    model = SeqTexTransformer3DModel(**TINY | changes)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            draw = torch.Generator().manual_seed(sum(name.encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.3 if parameter.ndim > 1 else 0.1))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


def inputs(views=3, grid=(4, 6), uv_grid=(8, 4), text=5, batch=2):
    torch.manual_seed(1)
    return (
        torch.randn(batch, 12, views, *grid),
        torch.randn(batch, 12, 1, *uv_grid),
        torch.rand(batch, views + 1) * 1000,
        torch.randn(batch, text, 8),
    )


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def loss_of(model, arguments):
    return sum(flow.square().mean() for flow in model(*arguments) if flow is not None)


@pytest.mark.parametrize("lora_rank", [0, 128])
@pytest.mark.parametrize(
    "sizes", [{}, {"views": 1}, {"views": 6, "grid": (2, 10)}, {"views": 12, "uv_grid": (2, 14)}, {"text": 1}]
)
def test_agrees_with_the_literal_twin(lora_rank, sizes):
    """Any number of views, rectangular ones too; outputs and gradients. In float64, but our rotations are float32."""
    model = tiny_model(lora_rank=lora_rank).double()
    arguments = [tensor.double() for tensor in inputs(**sizes)]
    state, results = dict(model.named_parameters()), []
    for flows in (model(*arguments), literal_forward(state, dict(model.config), *arguments)):
        loss = sum(flow.square().mean() for flow in flows)
        results.append((flows, torch.autograd.grad(loss, list(state.values()), allow_unused=True)))
    (found, found_gradients), (expected, expected_gradients) = results
    assert max(map(relative_error, found, expected)) < 1e-5
    largest = max(gradient.abs().max() for gradient in expected_gradients)
    for name, ours, theirs in zip(state, found_gradients, expected_gradients, strict=True):
        if ours is None:  # a single text token is no choice
            assert theirs.abs().max() < 1e-4 * largest, name
        else:
            assert (ours - theirs).abs().max() < 1e-4 * max(theirs.abs().max(), 1e-2 * largest), name


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_a_switch_trains_and_survives_saving(tmp_path, changes):
    model, arguments = tiny_model(lora_rank=2, **changes), inputs()
    loss_of(model, arguments).backward()
    silent = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert not silent
    save_model(model, tmp_path / "model")
    again = SeqTexTransformer3DModel.from_pretrained(tmp_path / "model")
    assert {name: again.config[name] for name in changes} == changes
    assert all(torch.equal(a, b) for a, b in zip(model(*arguments), again(*arguments), strict=True))
    names = set(model.state_dict())
    assert any("uv" in name for name in names) == (changes.get("uv_branch") != "shared")
    assert any("geometry_caster" in name for name in names) == (changes.get("geometry_attention") != "off")


def test_each_switch_changes_the_result_where_it_should():
    arguments = inputs()
    both, of_views, off, shared, _ = (tiny_model(**changes)(*arguments) for changes in SWITCHES)
    assert torch.equal(both[0], of_views[0])
    assert relative_error(of_views[1], both[1]) > 1e-3
    assert relative_error(off[0], both[0]) > 1e-3
    assert relative_error(off[1], of_views[1]) > 1e-3
    assert torch.equal(shared[0], both[0])
    assert relative_error(shared[1], both[1]) > 1e-3


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_views_never_depend_on_the_uv_map_and_skipping_it_is_exact(changes):
    model, (mv, uv, timestep, text) = tiny_model(lora_rank=2, **changes), inputs()
    results = []
    for uv_input in (uv, torch.randn_like(uv), None):
        flow = model(mv, uv_input, timestep, text)[0]
        gradients = torch.autograd.grad(flow.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([flow, *(gradient for gradient in gradients if gradient is not None)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_geometry_reaches_what_the_switch_names():
    mv, uv, timestep, text = inputs()
    moved_mv, moved_uv = mv.clone(), uv.clone()
    moved_mv[:, 4:] += 1
    moved_uv[:, 4:] += 1
    for changes, views_feel, map_feels in ((SWITCHES[0], True, True), (SWITCHES[1], True, False), (SWITCHES[2], 0, 0)):
        model = tiny_model(**changes)
        before = model(mv, uv, timestep, text)
        assert torch.equal(model(moved_mv, uv, timestep, text)[0], before[0]) != views_feel
        assert torch.equal(model(mv, moved_uv, timestep, text)[1], before[1]) != map_feels


def test_grids_longer_than_wans_table():
    """Rows and columns beyond 1024 tokens, one of each pair as in a shorter map."""
    model = tiny_model(rope_max_seq_len=2048, num_layers=1)
    _, _, timestep, text = inputs(views=1, batch=1)
    with torch.no_grad():
        flow = model(torch.randn(1, 12, 1, 2, 2), torch.randn(1, 12, 1, 2, 2 * 1500), timestep, text)[1]
    assert torch.isfinite(flow).all()
    with pytest.raises(ValueError, match="rope_max_seq_len=1024"):
        tiny_model()(torch.randn(1, 12, 1, 2, 2), torch.randn(1, 12, 1, 2, 2 * 1500), timestep, text)


@pytest.mark.parametrize("changes", [{"geometry_attention": "uv"}, {"uv_branch": "both"}])
def test_unknown_switches_are_refused(changes):
    with pytest.raises((ValueError, TypeError), match=next(iter(changes))):
        tiny_model(**changes)


@pytest.mark.parametrize(("mode", "every"), [("full", 1), ("full", 2), ("selective", 1)])
@pytest.mark.parametrize("trained", ["all", "released"])
def test_checkpointing_keeps_gradients_and_saves_memory(monkeypatch, mode, every, trained):
    monkeypatch.setattr("training.model.block.SMALL_SCORES", 0)  # the fused attention, which `selective` keeps
    model, arguments = tiny_model(lora_rank=2, num_layers=3), inputs()
    parameters = list(mark_trained(model, trained).values())
    results = []
    for policy in ("none", mode):
        model.checkpoint_blocks(policy, every)
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(model, arguments)
        kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        results.append((kept_bytes, torch.autograd.grad(loss, parameters)))
    (plain_bytes, plain), (bytes_kept, gradients) = results
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True))
    assert bytes_kept < plain_bytes


def test_selective_checkpointing_runs_each_attention_once(monkeypatch):
    monkeypatch.setattr("training.model.block.SMALL_SCORES", 0)
    model, arguments = tiny_model(), inputs()
    counts = {}
    for mode in ("none", "selective", "full"):
        model.checkpoint_blocks(mode)
        with Operations() as operations:
            loss_of(model, arguments).backward()
        counts[mode] = [
            sum(part in name for name in operations.names) for part in ("attention_for_cpu.default", "addmm")
        ]
    attentions_per_pass = 2 * 4
    assert [count[0] for count in counts.values()] == [attentions_per_pass] * 2 + [2 * attentions_per_pass]
    assert counts["none"][1] < counts["selective"][1] == counts["full"][1]


class Operations(TorchDispatchMode):
    """Records the names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


COMPILED = """
import torch
from tests.training.model.test_model_switches import inputs, loss_of, tiny_model

model, arguments = tiny_model(num_layers=1), inputs(batch=1)
model.checkpoint_blocks("full")
parameters = list(model.parameters())
plain = torch.autograd.grad(loss_of(model, arguments), parameters)
model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
compiled = torch.autograd.grad(loss_of(model, arguments), parameters)
largest = max(gradient.abs().max() for gradient in plain)
assert all((a - b).abs().max() < 1e-4 * largest for a, b in zip(plain, compiled, strict=True))
mv, uv, timestep, text = arguments
try:
    model(mv, uv, timestep[:, :2], text)
except ValueError as error:
    assert "2 timesteps for 3 views" in str(error), error
else:
    raise AssertionError("a missing timestep went unnoticed")
"""


def test_compiled_blocks_are_one_graph_with_the_same_gradients():
    """In a process of its own, without the run-time checks of types, which cannot be traced. No compiler is needed
    behind the tracing."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=REPO, timeout=300)


def test_plain_and_fused_attention_agree(monkeypatch):
    model, arguments = tiny_model(), inputs()
    plain = model(*arguments)
    monkeypatch.setattr("training.model.block.SMALL_SCORES", 0)
    assert max(map(relative_error, model(*arguments), plain)) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_lora_reads_its_input_as_it_is(monkeypatch, autocast):
    """Under bfloat16 autocast no float32 copy of it is made; without, nothing changes to the last bit."""
    from peft.tuners.lora import LoraLayer

    model, arguments = tiny_model(lora_rank=2, lora_alpha=1), inputs()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    widened, real = [], LoraLayer._cast_input_dtype

    def cast(self, x, dtype):
        found = real(self, x, dtype)
        widened.extend([1] if found.dtype != x.dtype else [])
        return found

    monkeypatch.setattr(LoraLayer, "_cast_input_dtype", cast)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = model(*arguments)
        assert not widened
        for layer in layers:
            layer.cast_input_dtype_enabled = True
        assert all(torch.equal(a, b) for a, b in zip(ours, model(*arguments), strict=True))
    assert bool(widened) == autocast, "peft's own way"


@pytest.mark.parametrize(
    ("kernel", "operator"), [("auto", "flash_attention_for_cpu"), ("flash", "flash_attention_for_cpu"), ("math", "bmm")]
)
def test_one_switch_chooses_the_attention(monkeypatch, kernel, operator):
    """In the forward pass and where a backward pass computes it again."""
    monkeypatch.setattr("training.model.block.SMALL_SCORES", 0)
    model, arguments = tiny_model(num_layers=1), inputs()
    model.checkpoint_blocks("full")
    with attention(kernel, "cpu"), Operations() as seen:
        flows = model(*arguments)
        forward = len(seen.names)
        torch.stack([flow.square().mean() for flow in flows]).sum().backward()
    for names in (seen.names[:forward], seen.names[forward:]):
        assert any(operator in name for name in names)
        assert any("flash" in name for name in names) == (kernel != "math")


@pytest.mark.parametrize("kernel", ["cudnn", "efficient"])
def test_an_attention_that_cannot_be_done_is_not_replaced(kernel):
    with pytest.raises(UsageError, match=f"run.attention {kernel}: .* flash and math"), attention(kernel, "cpu"):
        raise AssertionError("another took its place")
