"""Modules that the server of `tests.support.training_process` loads once for its forks: all that training imports on
its way, and compiled decoders. Nothing here may run a backward pass: autograd does not survive a fork."""

import diffusers.hooks  # noqa: F401
import peft  # noqa: F401

import tests.support.training_process  # noqa: F401
from schemas.codec import decode, encode
from schemas.sample import Regime
from tests.support.small_dataset import small_sample

decode(encode(small_sample("a", Regime.TEXTURED, 0, 16, 16)))
