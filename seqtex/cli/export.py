"""`seqtex export`, `import`, `publish`, `attribution`, `weights`: datasets and checkpoints in forms for others."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pipeline.config import BuildConfig
from pipeline.dataset.attribution import attribution_csv
from pipeline.dataset.verify import verify
from pipeline.seqtex_layouts.export import export as write_layout
from pipeline.seqtex_layouts.layout import Layout
from pipeline.seqtex_layouts.material_maps import export_maps
from pipeline.seqtex_layouts.recording import export_recordings
from schemas.dataset import read_ledger
from schemas.errors import UsageError, UserError
from schemas.storage import Location, refuse_links
from seqtex.cli.build import build
from seqtex.cli.options import WorkOptions
from seqtex.cli.terminal.console import bar, log_event


def export(
    dataset: Location,
    layout: Literal["seqtex-3d", "seqtex-images", "maps", "rerun"],
    out: Path,
    uid: list[str] = [],  # noqa: B006
) -> int:
    """Write a dataset in a layout that SeqTex's own training code reads, as maps and models for Blender and three.js,
    or as recordings for the Rerun viewer.

    Args:
        dataset: folder that `seqtex build` wrote
        layout: seqtex-3d (textured models), seqtex-images (views), maps (PNG maps and a .glb for Blender, three.js), or
            rerun (recordings). seqtex-3d: a model.glb and its model.jpeg for every textured sample;
            seqtex-images: the views of every sample as colour, depth and normal images with their cameras; maps: <uid>/
            for every textured sample: base_color.png, with materials metallic, roughness, normal_gl and emissive, and a
            model.glb with all of them; rerun: <uid>.rrd for every sample: cameras with images, points, mesh, UV maps,
            texts, shown by `rerun OUT/*.rrd`
        out: folder to write, new or empty
        uid: a sample to export instead of all; may be given several times
    """
    uids = frozenset(uid)
    planned = len(uids) or sum(shard.count for part in read_ledger(dataset) for shard in part.shards)
    try:
        with bar("exporting", planned, "samples") as update:
            if layout == "rerun":
                count = export_recordings(dataset, out, update, uids)
            elif layout == "maps":
                count = export_maps(dataset, out, update, uids)
            else:
                count = write_layout(dataset, out, Layout(layout), update, uids)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{error.filename or out}: cannot be exported ({reason}); fix that and export again") from error
    log_event("exported", out=str(out), layout=layout, samples=count)
    return 0


def import_layout(
    folder: Path,
    layout: Literal["seqtex-3d", "seqtex-images"],
    out: Location,
    cfg: BuildConfig,
    work: WorkOptions,
) -> int:
    """Build a dataset from a folder in one of SeqTex's own layouts: models become textured samples like any asset,
    renders become multi-view samples without a mesh.

    Args:
        folder: holds <2 hex>/<id>/ with the files of an item, and perhaps a .jsonl that lists ids and captions
        layout: seqtex-3d (model.glb, model.jpeg) or seqtex-images (meta.json, color_0000.webp, depth_0000.exr, ...)
        out: folder of the dataset, or its address in an object store
    """
    return build(f"{layout}:{folder}", out, cfg, work)


def publish(
    dataset: Location,
    repo: str,
    private: bool = False,
    endpoint: str | None = None,
    include_restricted: bool = False,
    include_paths: bool = False,
) -> int:
    """Upload a finished dataset to a Hugging Face dataset repository, with a contact sheet on its card. The dataset is
    verified first and stays as it is. Run the command again after an interruption, or after the dataset has changed: it
    sends what the repository lacks. The token is that of `hf auth login`, or HF_TOKEN.

    Args:
        dataset: folder that `seqtex build` wrote
        repo: repository, ORGANISATION/NAME or USER/NAME; it is created if there is none
        private: create it as a private one; refuse one that exists and is public
        endpoint: URL of the hub (default: HF_ENDPOINT, else Hugging Face)
        include_restricted: publish also samples whose licence does not permit it, or is not stated
        include_paths: publish also whole paths of this machine, which plan and ledger of earlier versions have
    """
    if not isinstance(dataset, Path):
        raise UsageError(f"{dataset}: only a folder of this machine can be published; download the dataset first")
    refuse_links(dataset)
    # Half a second to import, and not needed to print help.
    from pipeline.publish.hub import Repository
    from pipeline.publish.publication import permitted, published_files

    repository = Repository(repo, endpoint)
    with bar("verifying", None, "jobs") as update:
        problems = verify(dataset, lambda done, total: update(done, "", total))
    for problem in problems:
        log_event("problem", detail=problem)
    if problems:
        remedy = f"run `seqtex repair {dataset}` and publish again"
        raise UserError(f"{dataset}: damaged or unfinished, nothing was sent (problems: {len(problems)}); {remedy}")
    findings = permitted(dataset, include_restricted, include_paths)
    log_event("licences", **findings.licences.counts())
    if findings.local_paths:
        log_event("warning", detail=f"paths of this machine are published: {'; '.join(findings.local_paths)}")
    with tempfile.TemporaryDirectory(prefix="seqtex-") as folder, bar("publishing", None, "files") as update:
        files = published_files(dataset, repo, repository.published, Path(folder))
        upload = repository.upload(files, private, lambda done, total: update(done, "", total=total))
    log_event("published", dataset=str(dataset), files=len(files), **asdict(upload))
    return 0


def attribution(dataset: Location, out: Path) -> int:
    """Write the attribution of every sample as a CSV file for spreadsheets: title, author, licence, page. Texts come
    from the assets' sources, so a cell that a spreadsheet would run as a formula begins with an apostrophe.

    Args:
        dataset: folder that `seqtex build` wrote
        out: .csv file to write; an earlier one is replaced
    """
    if out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: only a .csv file is written; give one")
    rows = attribution_csv(dataset, out)
    log_event("attribution", out=str(out), samples=rows)
    return 0


def weights(
    checkpoint: str,
    out: Path,
    lora: Literal["separate", "merged", "alone"] = "separate",
    layout: Literal["released", "checkpoint"] = "released",
) -> int:
    """Write the transformer in the layout of the released SeqTex weights (WanT2TexTransformer3DModel, safetensors), its
    LoRA as an adapter for Wan2.1, or a trainer state as a checkpoint.

    Args:
        checkpoint: directory of a trained or released model, a hub repository (owner/name), or a trainer state
            (states/step-00001000.ckpt of a run), whose averaged weights are written
        out: directory to write; an earlier export there is replaced
        lora: separate, under peft's names, as released; merged into the weights below it; or alone, as an adapter for
            peft and diffusers
        layout: released, or checkpoint, the layout of a run's folder `checkpoint`, which any model fits in
    """
    if Path(checkpoint).absolute() == out.absolute():
        raise UsageError(f"--out {out} is the checkpoint itself; choose another directory")
    if layout == "checkpoint" and lora != "separate":
        raise UsageError(f"--lora {lora}: a checkpoint keeps LoRA separate; leave out --lora or --layout")
    # Seconds to import, and not needed to print help.
    from training.loop.checkpoints import load_weights, save_checkpoint
    from training.model.lora import save_lora
    from training.model.weights import export_released

    model, card = load_weights(checkpoint, with_card=layout == "checkpoint")
    if card is not None:
        save_checkpoint(out, model, card)
    elif lora == "alone":
        save_lora(model, out)
    else:
        export_released(model, out, lora)
    written = sum(file.stat().st_size for file in out.iterdir())
    log_event("weights", out=str(out), layout=layout, lora=lora, bytes=written)
    return 0
