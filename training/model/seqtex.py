"""The SeqTex transformer: views and one UV map denoised together (https://arxiv.org/abs/2507.04285)."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import accumulate
from os import PathLike
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from schemas.errors import UserError
from training.model.block import Block, BranchInputs, GeometryAttention, UvBranch
from training.model.files import HUB_OPTIONS, check_tensors, find_directory, read_architecture, read_shapes
from training.model.files import shapes as shapes_of
from training.model.layers import TimeTextEmbedding, modulated_norm
from training.model.lora import add_lora
from training.model.rope import Rope, joined, mean_points, rope_dims, rope_of_both, rope_of_grid, rope_of_points

log = logging.getLogger(__name__)

Checkpointing = Literal["none", "selective", "full"]
"""Parts that the backward pass computes again: none, all but the attention itself, or all of a block."""


class SeqTexTransformer3DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Two-branch diffusion transformer with the parameter names of the released checkpoint.

    Each branch's input is 3 * in_channels deep: noisy RGB latent, position latent, normal latent; with view_hint
    followed by the hint's in_channels + 1, then by the condition_channels of each condition image by its name, with
    position_rope by the 4 of the points. The output is the flow (noise minus clean latent), out_channels deep. View
    tokens never read UV tokens. Views and UV map may have any height and
    width in whole patches, and there may be any number of views.

    Two switches serve ablations; their first values in brackets are the released model. geometry_attention [mv_uv]: the
    embedding of position and normal maps enters queries and keys of all tokens, of the view tokens alone (`mv`), or
    never (`off`, which leaves the model without geometry). uv_branch [decoupled]: UV tokens have weights of their own,
    or go through those of the views, LoRA included (`shared`), as further tokens that the views do not see.

    Three more are ours, off in the released model. view_hint: colours of the given views that geometry has carried to
    every image (`training.conditions.view_hint`) are added to its RGB tokens through a layer of their own, which is
    zero where it is added to weights that did not know it. position_rope: queries and keys turn with the mean position
    of a token's surface points instead of its row and column. maps: names of the maps that the UV branch generates,
    each a frame with the next time index (None: the base colour); an embedding of each further one, zero at first, is
    added to its tokens.
    """

    _supports_gradient_checkpointing = True
    # diffusers asks for these as lists on the class.
    _no_split_modules = ["Block"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["Block"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = [  # type: ignore[assignment]  # noqa: RUF012
        "time_embedder", "scale_shift_table", "scale_shift_table_uv", "norm2", "normuv2", "norm_q", "norm_k",
    ]  # fmt: skip

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] | list[int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        lora_rank: int = 0,
        lora_alpha: int = 64,
        geometry_attention: GeometryAttention = "mv_uv",
        uv_branch: UvBranch = "decoupled",
        view_hint: bool = False,
        position_rope: bool = False,
        condition_channels: dict[str, int] | None = None,
        maps: tuple[str, ...] | list[str] | None = None,
    ) -> None:
        super().__init__()
        _check_config(patch_size, attention_head_dim, freq_dim, qk_norm)
        _check_choice("geometry_attention", geometry_attention, GeometryAttention)
        _check_choice("uv_branch", uv_branch, UvBranch)
        dim = num_attention_heads * attention_head_dim
        patch = (patch_size[0], patch_size[1], patch_size[2])

        def embedding(channels: int = in_channels) -> nn.Conv3d:
            return nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)

        self.patch_embedding = embedding()
        if view_hint:
            self.hint_patch_embedding = embedding(in_channels + 1)
        if beside := {name: channels for name, channels in (condition_channels or {}).items() if channels}:
            self.condition_patch_embeddings = nn.ModuleDict({name: embedding(n) for name, n in beside.items()})
        if further := (maps or ())[1:]:
            self.uv_map_embeddings = nn.ParameterDict({name: nn.Parameter(torch.zeros(dim)) for name in further})
        if geometry_attention != "off":
            self.pos_patch_embedding = embedding()
            self.norm_patch_embedding = embedding()
        self.condition_embedder = TimeTextEmbedding(dim, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            [
                Block(dim, ffn_dim, num_attention_heads, cross_attn_norm, eps,
                      geometry_attention=geometry_attention, uv_branch=uv_branch)
                for _ in range(num_layers)
            ]
        )  # fmt: skip
        self.proj_out = nn.Linear(dim, out_channels * patch[1] * patch[2])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        if uv_branch == "decoupled":
            self.scale_shift_table_uv = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self._init_weights()
        if lora_rank:
            add_lora(self, lora_rank, lora_alpha)

    def _init_weights(self) -> None:
        """Wan's own initialisation; each geometry caster starts at zero, as the paper's."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "time_embedder" in name or "text_embedder" in name:
                nn.init.normal_(parameter, std=0.02)
            elif "geometry_caster" in name or "proj_out" in name:
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and "scale_shift_table" not in name:
                nn.init.xavier_uniform_(parameter.flatten(1))

    def forward(
        self,
        mv: Float[Tensor, "b c_in views h w"],
        uv: Float[Tensor, "b c_in maps uv_h uv_w"] | None,
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l text_dim"],
    ) -> tuple[Float[Tensor, "b c_out views h w"], Float[Tensor, "b c_out maps uv_h uv_w"] | None]:
        """Flow of the views and of the UV maps.

        timestep is in [0, 1000], one per view and last those of the UV maps, which do not count where uv is None. With
        uv=None the UV branch is skipped: the same view flow and the same gradients, in less than half the time, and
        None for the UV flow.
        """
        views, grid = mv.shape[2], self._token_grid(mv)
        maps = len(self.config["maps"] or ("base_color",))
        if timestep.shape[1] != views + maps or (uv is not None and uv.shape[2] != maps):
            found = f"{timestep.shape[1]} timesteps for {views} views and {maps} UV maps"
            raise ValueError(f"{found}; give {views + maps}, and {maps} frames of the UV branch")
        geometry = self.config["geometry_attention"]
        embedding, modulation = self.condition_embedder.time(timestep)
        text, mv_rope, x_mv = self.condition_embedder.text(text), self._rope(mv, 0, grid), self._embed_rgb(mv)
        mv_branch = BranchInputs(
            self._embed_geometry(mv) if geometry != "off" else None, modulation[:, :views], mv_rope
        )
        x_uv: Tensor | None = None
        uv_branch: BranchInputs | None = None
        both_rope: Rope | None = None
        if uv is not None:
            uv_grid = self._token_grid(uv)
            x_uv, uv_geometry = self._embed_maps(uv), self._embed_geometry(uv) if geometry == "mv_uv" else None
            uv_rope = self._rope(uv, views, uv_grid)
            uv_branch = BranchInputs(uv_geometry, modulation[:, views:], uv_rope)
            if self.config["position_rope"]:
                both_rope = joined(mv_rope, uv_rope)
            else:  # remembered
                both_rope = rope_of_both((views, *grid), (maps, *uv_grid), self.config["attention_head_dim"], mv.device)

        for block in self.blocks:
            x_mv, x_uv = block(x_mv, x_uv, text, mv_branch, uv_branch, both_rope)

        mv_flow = self._flow(x_mv, self.scale_shift_table, embedding[:, :views], grid)
        if x_uv is None:
            return mv_flow, None
        table = self.scale_shift_table if self.config["uv_branch"] == "shared" else self.scale_shift_table_uv
        return mv_flow, self._flow(x_uv, table, embedding[:, views:], uv_grid)

    def checkpoint_blocks(self, mode: Checkpointing, every: int = 1) -> None:
        """Trade time for memory in training: of `every` successive blocks the first is computed again in the backward
        pass. `selective` keeps the results of its attentions, the dearest part per byte. Gradients stay the same."""
        _check_choice("checkpointing", mode, Checkpointing)
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        again = partial(checkpoint, use_reentrant=False)
        if mode == "selective":
            again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _keep_attention))
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.gradient_checkpointing = mode != "none" and index % every == 0
            block._gradient_checkpointing_func = again

    def _token_grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens per frame."""
        _, patch_h, patch_w = self.config["patch_size"]
        channels, frames, height, width = latents.shape[1:]
        depth, longest = self.in_depth, self.config["rope_max_seq_len"]
        if height % patch_h or width % patch_w or channels != depth:
            raise ValueError(
                f"latents are {channels} channels of {height} x {width}; the model takes {depth} channels "
                f"({', '.join(self._parts())}) and multiples of {patch_h} x {patch_w}"
            )
        if max(frames + 1, height // patch_h, width // patch_w) > longest:
            raise ValueError(f"latents of {frames} x {height} x {width} pass rope_max_seq_len={longest}")
        return height // patch_h, width // patch_w

    @property
    def in_depth(self) -> int:
        """Channels of each branch's input."""
        return max(part.stop for part in self._parts().values())

    def _parts(self) -> dict[str, slice]:
        """Return the range of channels of each part of an input."""
        channels = self.config["in_channels"]
        sizes = {"rgb": channels, "position": channels, "normal": channels}
        sizes |= {"hint": channels + 1} if self.config["view_hint"] else {}
        sizes |= {name: size for name, size in (self.config["condition_channels"] or {}).items() if size}
        sizes |= {"points": 4} if self.config["position_rope"] else {}
        ends = list(accumulate(sizes.values()))
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    def _embed_rgb(self, latents: Tensor) -> Tensor:
        """Tokens of the RGB latent, and of the condition images of the model: [b, frames * rows * columns, dim]."""
        tokens = _linear(self._patches(latents, "rgb"), self.patch_embedding)
        if self.config["view_hint"]:
            tokens = tokens + _linear(self._patches(latents, "hint"), self.hint_patch_embedding)
        for name, layer in getattr(self, "condition_patch_embeddings", {}).items():
            tokens = tokens + _linear(self._patches(latents, name), layer)
        return tokens

    def _embed_maps(self, latents: Tensor) -> Tensor:
        """Tokens of the UV maps, as `_embed_rgb`, with the embedding of each further map."""
        color, *others = self._embed_rgb(latents).chunk(latents.shape[2], dim=1)
        names = (self.config["maps"] or ())[1:]
        further = [x + self.uv_map_embeddings[name].to(x) for name, x in zip(names, others, strict=True)]
        return torch.cat([color, *further], dim=1) if further else color

    def _embed_geometry(self, latents: Tensor) -> Tensor:
        """The same of position and normal latents, added up."""
        position = _linear(self._patches(latents, "position"), self.pos_patch_embedding)
        return position + _linear(self._patches(latents, "normal"), self.norm_patch_embedding)

    def _patches(self, latents: Tensor, part: str) -> Tensor:
        """Patches of one part of the channels."""
        _, p, q = self.config["patch_size"]
        latents = latents[:, self._parts()[part]].to(self.patch_embedding.weight.dtype)
        return rearrange(latents, "b c f (h p) (w q) -> b (f h w) (c p q)", p=p, q=q)

    def _rope(self, latents: Tensor, first_frame: int, grid: tuple[int, int]) -> Rope:
        """Rotations of one branch's tokens."""
        frames, head_dim = latents.shape[2], self.config["attention_head_dim"]
        if not self.config["position_rope"]:
            return rope_of_grid(first_frame, frames, *grid, head_dim, latents.device)
        _, p, q = self.config["patch_size"]
        points = rearrange(
            latents[:, self._parts()["points"]].float(), "b c f (h p) (w q) -> b f (h w) (p q) c", p=p, q=q
        )
        return rope_of_points(first_frame, mean_points(points), head_dim)

    def _flow(self, x: Tensor, table: Tensor, embedding: Tensor, grid: tuple[int, int]) -> Tensor:
        shift, scale = (table + embedding[:, :, None]).unbind(2)
        patches = self.proj_out(modulated_norm(x, shift, scale, self.config["eps"]))
        _, p, q = self.config["patch_size"]
        h, w = grid
        return rearrange(patches, "b (f h w) (p q c) -> b c f (h p) (w q)", h=h, w=w, p=p, q=q)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        subfolder: str = "",
        *,
        variant: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        use_safetensors: bool | None = None,
        add_view_hint: bool = False,
        add_condition_channels: Mapping[str, int] | None = None,
        add_maps: Sequence[str] = (),
        **options: Any,
    ) -> "SeqTexTransformer3DModel":
        """Load the model of a local directory or hub repository, in our layout or the released one, as diffusers does.

        Norms, time embedder and modulation tables stay float32 at any dtype. add_view_hint: where the weights have no
        view hint, add its layer with zeros, which leaves the output the same until it is trained;
        add_condition_channels, add_maps: the same for condition images and maps, by name. options: those of the hub
        (`revision`, `token`, `cache_dir`, ...) and of diffusers' `ModelMixin.from_pretrained`. Raises UserError where
        the directory holds no such model, naming tensors that are missing, unexpected or of another shape.
        """
        if use_safetensors is False:
            raise UserError(f"{pretrained_model_name_or_path}: pickled weights are never read; give safetensors")
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        directory = find_directory(pretrained_model_name_or_path, subfolder, **hub)
        architecture = read_architecture(directory, variant)
        expected = shapes_of(cls.empty(architecture).state_dict())
        check_tensors(expected, read_shapes(directory, variant=variant), str(directory))
        lora = {name: architecture[name] for name in ("lora_rank", "lora_alpha") if name in architecture}
        model: SeqTexTransformer3DModel = super().from_pretrained(
            directory, variant=variant, torch_dtype=torch_dtype, use_safetensors=True, **lora, **options
        )
        return model.with_inputs(add_view_hint, add_condition_channels or {}, add_maps)

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """Make a model of a config, as diffusers does. Wan's settings that are null and that it lacks do not count."""
        known = signature(cls.__init__).parameters
        given = {name: value for name, value in config.items() if name in known or name[0] == "_" or value is not None}
        return super().from_config(given, return_unused_kwargs, **options)

    def with_inputs(
        self, view_hint: bool, condition_channels: Mapping[str, int], maps: Sequence[str] = ()
    ) -> "SeqTexTransformer3DModel":
        """Return a model of the same weights that also takes a view hint and condition images and generates `maps`,
        whose layers and embeddings are zero; itself if it does."""
        channels, own = dict(self.config["condition_channels"] or {}), list(self.config["maps"] or [])
        had = {"view_hint": self.config["view_hint"], "condition_channels": channels, "maps": own}
        inputs = {
            "view_hint": view_hint or self.config["view_hint"],
            "condition_channels": {**channels, **condition_channels},
            "maps": list(dict.fromkeys([*own, *maps])),
        }
        if inputs == had:
            return self
        hinted, state = self.empty(dict(self.config) | inputs), self.state_dict()
        added = shapes_of(hinted.state_dict()).items() - shapes_of(state).items()
        return hinted.filled(
            state | {name: torch.zeros(shape, device=self.device) for name, shape in added}, self.dtype
        )

    @classmethod
    def empty(cls, config: Mapping[str, Any]) -> "SeqTexTransformer3DModel":
        """Make the model of a config on the meta device. Settings that the model does not have are skipped with a
        warning."""
        known = set(signature(cls.__init__).parameters) - {"self"}
        unknown = {key for key, value in config.items() if key not in known and key[0] != "_" and value is not None}
        if unknown:
            log.warning("skipped settings that SeqTexTransformer3DModel does not have: %s", sorted(unknown))
        with torch.device("meta"):
            return cls(**{key: value for key, value in config.items() if key in known})

    def filled(self, state: Mapping[str, Tensor], dtype: torch.dtype) -> "SeqTexTransformer3DModel":
        """Put tensors into a model on the meta device without a second copy; sensitive parts stay float32."""
        wide = set(self._keep_in_fp32_modules)
        cast = {
            name: tensor.to(dtype if wide.isdisjoint(name.split(".")) else torch.promote_types(dtype, torch.float32))
            for name, tensor in state.items()
        }
        self.load_state_dict(cast, assign=True)
        return self


def _linear(tokens: Tensor, convolution: nn.Conv3d) -> Tensor:
    """A convolution whose stride is its kernel is a linear layer on patches, and faster as one."""
    return F.linear(tokens, convolution.weight.flatten(1), convolution.bias)


def _keep_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = "scaled_dot_product" in str(op)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; there are {', '.join(get_args(choices))}")


def _check_config(patch_size: tuple[int, ...] | list[int], head_dim: int, freq_dim: int, qk_norm: str) -> None:
    if len(patch_size) != 3 or patch_size[0] != 1:
        raise ValueError(f"patch_size is {tuple(patch_size)}; it must be (1, p, q): every frame has its own timestep")
    if qk_norm != "rms_norm_across_heads":
        raise ValueError(f"qk_norm is {qk_norm!r}; only 'rms_norm_across_heads' exists")
    if freq_dim % 2 or head_dim % 2 or min(rope_dims(head_dim)) < 2:
        raise ValueError(f"freq_dim {freq_dim} and attention_head_dim {head_dim} must be even, the latter at least 6")
