"""Wan text to video: 2.1 in two sizes with one VAE, 2.2's 5B model with a VAE of its own; 2.2's large ones of two
experts are refused."""

from training.model.backbones.backbone import Backbone, LatentLayout

WAN21_VAE = LatentLayout(channels=16, downscale=8, parameters=126_892_531)
"""The VAE of Wan2.1, and of Wan2.2's large models."""

WAN21_1P3B = Backbone(
    hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    vae=WAN21_VAE,
    transformer={
        "num_layers": 30,
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "ffn_dim": 8960,
        "text_dim": 4096,
        "freq_dim": 256,
        "in_channels": WAN21_VAE.channels,
        "out_channels": WAN21_VAE.channels,
    },
)
"""The backbone that the released SeqTex weights were trained from."""

WAN21_14B = Backbone(
    hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    vae=WAN21_VAE,
    transformer={
        "num_layers": 40,
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "ffn_dim": 13824,
        "text_dim": 4096,
        "freq_dim": 256,
        "in_channels": WAN21_VAE.channels,
        "out_channels": WAN21_VAE.channels,
    },
)
"""Five times the parameters on the same latents."""

WAN22_VAE = LatentLayout(channels=48, downscale=16, parameters=704_688_668)
"""Patches of 2 x 2 pixels before its network, which works at 1/8: three times the channels, a quarter of the tokens."""

WAN22_5B = Backbone(
    hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    vae=WAN22_VAE,
    transformer={
        "num_layers": 30,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "ffn_dim": 14336,
        "text_dim": 4096,
        "freq_dim": 256,
        "in_channels": WAN22_VAE.channels,
        "out_channels": WAN22_VAE.channels,
    },
)
"""Text, or text and an image, to video: the image is a frame with noise level 0, as SeqTex gives views."""

TWO_EXPERTS = (
    "it has two experts (transformer, transformer_2), one for high noise levels and one for low ones; in SeqTex given "
    "and generated frames have different noise levels in one pass, so it needs one network for all of them: start from "
    "Wan2.1-T2V-14B, which has the same sizes"
)

WAN22_A14B = Backbone(hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers", vae=WAN21_VAE, refused=TWO_EXPERTS)
WAN22_I2V_A14B = Backbone(hub="Wan-AI/Wan2.2-I2V-A14B-Diffusers", vae=WAN21_VAE, refused=TWO_EXPERTS)
