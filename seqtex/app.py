"""The page of `seqtex app`: a mesh with a picture or a prompt becomes a textured mesh, in a browser on this machine."""

import html
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from schemas.errors import UsageError, UserError
from seqtex.cli.terminal.console import log, log_event
from seqtex.cli.texture import weights_dtype
from seqtex.texturing import (
    MAX_UNWRAP_FACES,
    MeshTexture,
    for_textures,
    prepare_mesh,
    require_text_encoder,
    texture_meshes,
)
from training.arithmetic import find_device
from training.diffusion.sampler import SamplerConfig
from training.loop.checkpoints import Checkpoint, load_checkpoint

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
MAX_UPLOAD = "512mb"
POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
    b"style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
"""The page reaches this server alone. Gradio has scripts within the page, and its 3D view compiles WebAssembly."""

Message = MutableMapping[str, Any]


class ContentSecurityPolicy:
    """ASGI middleware that sends the policy with every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """The network, and the place where meshes are read and results are written."""

    network: Checkpoint
    device: str
    folder: Path
    reader: Executor
    """Its one thread lives as long as the server does: the sandboxed readers of meshes end with the thread that began
    them."""
    max_unwrap_faces: int

    def texture(
        self,
        mesh: str | None,
        picture: str | None,
        view: int,
        prompt: str,
        cfg: SamplerConfig,
        seed: int,
        progress: Callable[[int], None],
    ) -> MeshTexture:
        """Texture an uploaded mesh. Raises UserError with the names of files instead of their places here."""
        if mesh is None:
            raise UsageError("there is no mesh; upload one")
        if not (picture or prompt):
            raise UsageError("nothing says what the texture should look like; give a picture or a prompt")
        try:
            require_text_encoder(self.network.card, prompt, cfg.guidance)
            reading = self.reader.submit(
                prepare_mesh, mesh, self.network.card, pictures={view: picture} if picture else {}, prompt=prompt,
                seed=seed, max_unwrap_faces=self.max_unwrap_faces,
            )  # fmt: skip
            (result,) = texture_meshes([reading.result()], self.network, cfg, device=self.device, progress=progress)
        except UserError as error:
            message = str(error)
            for path in filter(None, (mesh, picture)):
                message = message.replace(path, Path(path).name)
            raise UserError(message) from error
        return result


def app(
    checkpoint: Path = Path("checkpoint"),
    port: int = 7860,
    device: str = "auto",
    tiling: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    wan: str | None = None,
    uv_resolution: int | None = None,
    max_unwrap_faces: int = MAX_UNWRAP_FACES,
) -> int:
    """Serve a page that textures meshes to a browser on this machine, until Ctrl-C. Uploads and results are deleted
    at the end. On another machine: forward the port by `ssh -L PORT:127.0.0.1:PORT HOST`, and open the printed URL
    here. Needs the extra `app`.

    Args:
        checkpoint: folder `checkpoint` of a training run, or a folder in the layout of the released weights
        port: of 127.0.0.1
        device: cpu, cuda, or auto
        tiling: VAE in tiles, for GPUs that cannot encode 1024 pixels at once
        precision: of the weights of VAE, text encoder and transformer; float32 on devices without fast bfloat16
        wan: directory or hub repository with Wan's VAE and text encoder; default: those of the checkpoint
        uv_resolution: texels a side; default: as trained
        max_unwrap_faces: faces up to which a mesh without a good UV layout gets a new one
    """
    require_gradio()
    device = find_device(device)
    network = load_checkpoint(checkpoint, device, dtype=weights_dtype(precision, device), tiling=tiling, wan=wan)
    network = for_textures(network, uv_resolution)
    with tempfile.TemporaryDirectory(prefix="seqtex-app-") as folder, ThreadPoolExecutor(1) as reader:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the one way to say where it keeps uploads
        bench = Workbench(
            network=network, device=device, folder=Path(folder), reader=reader, max_unwrap_faces=max_unwrap_faces
        )
        blocks = page(bench, checkpoint)
        serve(blocks, port)
        log.at_rest()
        log_event("app", url=f"http://{HOST}:{port}/", checkpoint=str(checkpoint))
        try:
            Event().wait()
        except KeyboardInterrupt:  # how it is meant to end
            pass
        finally:
            blocks.close(verbose=False)
    return 0


def require_gradio() -> None:
    """Raise UsageError unless the package gradio is there."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        remedy = "in this program's folder, pip install -c constraints.txt '.[app]'"
        raise UsageError(f"the page needs the package gradio ({error}); {remedy}") from error


def page(bench: Workbench, checkpoint: Path) -> "gradio.Blocks":
    """Lay out the page. Prompt and guidance are there for checkpoints with a text encoder alone."""
    import gradio as gr

    card = bench.network.card
    reads_text = card.text_encoder != "none"
    shown: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"]}  # none that shares

    def run(
        mesh: str | None,
        picture: str | None,
        view: int,
        prompt: str | None,
        steps: int,
        guidance: float,
        seed: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio looks for it here)
    ) -> tuple[str, np.ndarray, list[tuple[np.ndarray, str]]]:
        progress(0, desc="reading the mesh")
        try:
            result = bench.texture(
                mesh, picture, view, (prompt or "").strip(), SamplerConfig(steps=steps, guidance=guidance), seed,
                lambda step: progress((step, steps), desc="denoising", unit="steps"),
            )  # fmt: skip
        except UserError as error:
            raise gr.Error(html.escape(str(error)), title="No texture", print_exception=False) from error
        assert mesh is not None
        place = Path(tempfile.mkdtemp(dir=bench.folder)) / f"{Path(mesh).stem}-textured.glb"
        result.save(place)
        return str(place), result.uv, [(rgb, f"view {number}") for number, rgb in enumerate(result.views)]

    with gr.Blocks(title="SeqTex Forge", analytics_enabled=False) as blocks:
        gr.Markdown(f"# SeqTex Forge\nA mesh and {'a picture or a prompt' if reads_text else 'a picture'} give a "
                    "textured mesh.")  # fmt: skip
        with gr.Row():
            with gr.Column():
                mesh = gr.Model3D(label="Mesh (.glb, .gltf, .obj)", interactive=True, height=260, elem_id="mesh")
                picture = gr.Image(
                    label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260,
                    elem_id="picture",
                )  # fmt: skip
                view = gr.Dropdown(
                    [(f"{number}: {name}" if name else str(number), number) for number, name in _views(card.views)],
                    value=0, label="View that the picture shows",
                )  # fmt: skip
                prompt = gr.Textbox(label="Prompt", visible=reads_text, elem_id="prompt")
                with gr.Row():
                    steps = gr.Slider(1, 100, value=30, step=1, label="Steps")
                    guidance = gr.Slider(1, 10, value=1, step=0.1, label="Guidance (1: off)", visible=reads_text)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                button = gr.Button("Texture", variant="primary", elem_id="texture")
            with gr.Column():
                textured = gr.Model3D(label="Textured mesh", interactive=False, height=420, elem_id="textured")
                uv = gr.Image(label="UV map", format="png", height=260, elem_id="uv", **shown)
                views = gr.Gallery(label="Views", format="png", columns=4, elem_id="views", **shown)
        gr.Markdown(f"Checkpoint `{checkpoint}`: {card.views} views of {card.view_resolution} pixels, UV map of "
                    f"{card.uv_resolution} texels, on {bench.device}.")  # fmt: skip
        given = [mesh, picture, view, prompt, steps, guidance, seed]
        button.click(run, given, [textured, uv, views], api_visibility="private", scroll_to_output=True)
    return blocks


def _views(count: int) -> list[tuple[int, str]]:
    """Views by number, with names where there are the released four."""
    names = ("front", "right", "back", "left") if count == 4 else ("",) * count
    return list(enumerate(names))


def serve(blocks: "gradio.Blocks", port: int) -> None:
    """Start the server of a page. Raises UserError where the port cannot be used."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Gradio's own white on orange and pale grey on white are below the contrast of WCAG AA
    theme = gr.themes.Default(primary_hue="blue").set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_500",
    )  # fmt: skip
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(ContentSecurityPolicy)]
    try:
        blocks.queue(default_concurrency_limit=1).launch(
            theme=theme, server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[], max_file_size=MAX_UPLOAD, ssr_mode=False, pwa=False, mcp_server=False,
            enable_monitoring=False, run_history=False, app_kwargs={"middleware": guards},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error}); give another") from error
