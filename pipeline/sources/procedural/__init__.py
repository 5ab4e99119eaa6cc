"""Made-up assets: a dataset that needs no download, with something to learn in it."""

from pipeline.sources.procedural.assets import procedural

__all__ = ["procedural"]
