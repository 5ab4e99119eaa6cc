"""`seqtex weights`: a checkpoint's weights for other programs."""

from pathlib import Path
from typing import Literal

from cli.progress import log_event
from schemas.errors import UsageError


def weights(checkpoint: str, out: Path, lora: Literal["separate", "merged", "alone"] = "separate") -> int:
    """Write the transformer in the layout of the released SeqTex weights (WanT2TexTransformer3DModel, safetensors), or
    its LoRA as a peft adapter for Wan2.1.

    Args:
        checkpoint: directory of a trained or released model, or a hub repository (owner/name)
        out: directory to write; an earlier export there is replaced
        lora: separate, under peft's names, as released; merged into the weights below it; or alone, as an adapter
    """
    if Path(checkpoint).absolute() == out.absolute():
        raise UsageError(f"--out {out} is the checkpoint itself; choose another directory")
    # Seconds to import, and not needed to print help.
    from training.model.checkpoint import export_released, load_model
    from training.model.lora import save_lora

    model = load_model(checkpoint)
    if lora == "alone":
        save_lora(model, out)
    else:
        export_released(model, out, lora)
    log_event("weights", out=str(out), lora=lora, bytes=sum(file.stat().st_size for file in out.iterdir()))
    return 0
