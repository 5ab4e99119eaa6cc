"""SeqTex Forge: build texture datasets from 3D assets, train SeqTex on them, texture meshes with it.

`docs/api.md` shows every name with an example. Each is imported when it is first used: `import seqtex` loads neither
torch nor Ray."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.errors import UserError
    from seqtex.dataset import Dataset, Sample
    from seqtex.runs import build, train
    from seqtex.texturing import texture
    from seqtex.web_dataset import decoder, webdataset
    from training.data.datamodule import TextureDataModule
    from training.module import TextureModule

__version__ = version("seqtex-forge")
__all__ = [
    "Dataset",
    "Sample",
    "TextureDataModule",
    "TextureModule",
    "UserError",
    "__version__",
    "build",
    "decoder",
    "texture",
    "train",
    "webdataset",
]

_MODULES = {
    "Dataset": "seqtex.dataset",
    "Sample": "seqtex.dataset",
    "TextureDataModule": "training.data.datamodule",
    "TextureModule": "training.module",
    "UserError": "schemas.errors",
    "build": "seqtex.runs",
    "decoder": "seqtex.web_dataset",
    "texture": "seqtex.texturing",
    "train": "seqtex.runs",
    "webdataset": "seqtex.web_dataset",
}
"""Module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
