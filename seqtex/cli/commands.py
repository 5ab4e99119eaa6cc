"""The commands of `seqtex`, with what their help shows."""

from dataclasses import dataclass

MAKE, LOOK, SHARE, TRAIN = "make a dataset", "look at a dataset", "share a dataset", "train and texture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand: its function, and a summary and an example for its help."""

    module: str
    """Module with a function of the command's name; imported only when the command runs."""
    group: str
    """Heading that it stands under in the help."""
    summary: str
    example: str
    positional: str | None = None
    """Parameter that is given without a flag."""
    function: str | None = None
    """Name of its function, if it is not the command's."""
    repeated: tuple[str, ...] = ()
    """Options with a list of values that are given once per value."""
    loads: str = ""
    """Name of what it loads first, for the line that it begins with; empty: its result comes without such lines."""
    common: tuple[str, ...] = ()
    """Options that the short help shows if there are many; by default those of no section."""


COMMANDS = {
    "demo": Command(
        module="seqtex.cli.demo",
        loads="PyTorch and Lightning",
        group=MAKE,
        summary="every step on procedural meshes: build, verify, train, texture, report",
        example="seqtex demo --out out/demo",
    ),
    "build": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="build a dataset from 3D assets",
        example="seqtex build --source folder:/data/meshes --out /data/forge --workers 8",
        common=(
            "source",
            "out",
            "workers",
            "address",
            "views.resolution",
            "uv.resolution",
            "views.lit",
            "rig.name",
            "rig.num_views",
            "select.licences",
            "select.sample",
            "blender.python",
            "limits.timeout_s",
        ),
    ),
    "verify": Command(
        module="seqtex.cli.inspect",
        loads="the pipeline",
        group=LOOK,
        summary="check every hash, count and sample of a dataset",
        example="seqtex verify /data/forge",
        positional="dataset",
    ),
    "status": Command(
        module="seqtex.cli.inspect",
        group=LOOK,
        summary="show how far a dataset is: outcomes by stage, rate, slowest assets, shard sizes",
        example="seqtex status /data/forge",
        positional="dataset",
    ),
    "failures": Command(
        module="seqtex.cli.inspect",
        group=LOOK,
        summary="list the assets that failed, with their stderr and a command that processes one alone",
        example="seqtex failures /data/forge --rejected",
        positional="dataset",
    ),
    "inspect": Command(
        module="seqtex.cli.inspect",
        group=LOOK,
        summary="process one asset of a dataset alone and show its outcome",
        example="seqtex inspect /data/forge --uid chair-0a1b2c3d",
        positional="dataset",
    ),
    "retry": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="process again the assets that ended with a reason, or whose file was put right",
        example="seqtex retry /data/forge --reason timeout --reason missing_file",
        positional="dataset",
        repeated=("reason", "uid"),
    ),
    "repair": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="build again exactly the damaged or missing jobs of a dataset",
        example="seqtex repair /data/forge --workers 8",
        positional="dataset",
    ),
    "extend": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="add the assets of a source to a dataset",
        example="seqtex extend /data/forge --source folder:/data/more --workers 8",
        common=("dataset", "source", "workers", "address", "select.licences", "select.sample", "blender.python"),
        positional="dataset",
    ),
    "merge": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="put datasets of one configuration together",
        example="seqtex merge /data/forge /data/other --out /data/both",
        positional="datasets",
    ),
    "upgrade": Command(
        module="seqtex.cli.build",
        loads="the pipeline",
        group=MAKE,
        summary="write a dataset of schema version 2 anew in the present version",
        example="seqtex upgrade /data/old --out /data/forge",
        positional="dataset",
    ),
    "what-if": Command(
        module="seqtex.cli.inspect",
        group=LOOK,
        summary="show what other thresholds would change in a dataset, by its ledger alone",
        example="seqtex what-if /data/forge --filter.min_color_std 0.02",
        positional="dataset",
        function="what_if",
    ),
    "report": Command(
        module="seqtex.cli.gallery",
        loads="the pipeline",
        group=LOOK,
        summary="write the gallery of a dataset (report/index.html)",
        example="seqtex report /data/forge --workers 8",
        positional="dataset",
        repeated=("run", "evaluation"),
    ),
    "view": Command(
        module="seqtex.cli.gallery",
        loads="the pipeline",
        group=LOOK,
        summary="serve the gallery of a dataset to a browser on this machine",
        example="seqtex view /data/forge",
        positional="dataset",
    ),
    "import": Command(
        module="seqtex.cli.export",
        loads="the pipeline",
        group=MAKE,
        summary="build a dataset from a folder in one of SeqTex's own data layouts",
        example="seqtex import /data/renders --layout seqtex-images --out /data/forge --workers 8",
        positional="folder",
        function="import_layout",
    ),
    "export": Command(
        module="seqtex.cli.export",
        loads="the pipeline",
        group=SHARE,
        summary="write a dataset in SeqTex's own data layouts, as PNG maps, or for the Rerun viewer",
        example="seqtex export /data/forge --layout rerun --out /data/recordings --uid chair-0a1b2c3d",
        positional="dataset",
        repeated=("uid",),
    ),
    "publish": Command(
        module="seqtex.cli.export",
        loads="the pipeline",
        group=SHARE,
        summary="upload a dataset to a Hugging Face dataset repository",
        example="seqtex publish /data/forge --repo organisation/forge --private",
        positional="dataset",
    ),
    "attribution": Command(
        module="seqtex.cli.export",
        group=SHARE,
        summary="write the attribution of a dataset as CSV that is safe in spreadsheets",
        example="seqtex attribution /data/forge --out attribution.csv",
        positional="dataset",
    ),
    "encode": Command(
        module="seqtex.cli.encode",
        loads="PyTorch",
        group=TRAIN,
        summary="write the latents of a dataset, for training without its images",
        example="seqtex encode /data/forge --codec wan --text_encoder umt5 --device cuda",
        positional="dataset",
    ),
    "train": Command(
        module="seqtex.cli.train",
        loads="PyTorch and Lightning",
        group=TRAIN,
        summary="train SeqTex on a dataset",
        example="seqtex train --preset small --data.directory /data/forge --run.directory /data/run",
        common=(
            "preset",
            "data.directory",
            "data.directories",
            "data.batch_size",
            "data.latents",
            "data.workers",
            "run.directory",
            "run.max_steps",
            "run.accumulate_grad_batches",
            "model.start",
            "model.start_path",
            "validation.directory",
            "dry_run",
        ),
    ),
    "weights": Command(
        module="seqtex.cli.export",
        loads="PyTorch",
        group=TRAIN,
        summary="write a checkpoint's weights as the released SeqTex code reads them, or its LoRA alone",
        example="seqtex weights /data/run/checkpoint --out /data/seqtex --lora merged",
        positional="checkpoint",
    ),
    "evaluate": Command(
        module="seqtex.cli.evaluate",
        loads="PyTorch",
        group=TRAIN,
        summary="measure a checkpoint on the meshes of a dataset",
        example="seqtex evaluate /data/held_out --checkpoint /data/run/checkpoint --meshes 64 --out metrics.json",
        positional="dataset",
    ),
    "ablate": Command(
        module="seqtex.ablation.run",
        loads="PyTorch and Lightning",
        group=TRAIN,
        summary="train variants of the model on procedural meshes and compare them on held-out ones",
        example="seqtex ablate --out out/ablation --minutes 30 --seeds 3",
    ),
    "texture": Command(
        module="seqtex.cli.texture",
        loads="PyTorch",
        group=TRAIN,
        summary="texture a mesh from one image, several views, or a text",
        example="seqtex texture chair.glb --image chair.png --checkpoint /data/run/checkpoint --out textured.glb",
        common=(
            "mesh",
            "image",
            "images",
            "prompt",
            "batch",
            "checkpoint",
            "out",
            "views",
            "steps",
            "guidance",
            "seed",
            "device",
            "precision",
            "wan",
        ),
        positional="mesh",
    ),
    "app": Command(
        module="seqtex.app",
        loads="PyTorch",
        group=TRAIN,
        summary="serve a page that textures meshes to a browser on this machine",
        example="seqtex app --checkpoint /data/run/checkpoint",
    ),
    "completion": Command(
        module="seqtex.cli.terminal.parser",
        group=TRAIN,
        summary="print the completion of commands and options for a shell",
        example="seqtex completion bash > ~/.local/share/bash-completion/completions/seqtex",
        positional="shell",
    ),
}


def overview() -> str:
    """Return the commands, in groups."""
    parts = []
    for group in (MAKE, LOOK, SHARE, TRAIN):
        parts += [f"{group}:"]
        parts += [f"  {name:12} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
        parts += [""]
    return "\n".join(parts)
