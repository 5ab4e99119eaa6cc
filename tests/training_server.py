"""What the server of `tests.training_process` loads once for all processes that it forks: all that training imports on
its way, and compiled decoders. Nothing here may run a backward pass: autograd does not survive a fork."""

import diffusers.hooks  # noqa: F401
import peft  # noqa: F401

import tests.training_process  # noqa: F401
from schemas.codec import decode, encode
from schemas.sample import Regime
from tests.small_dataset import small_sample

decode(encode(small_sample("a", Regime.TEXTURED, 0, 16, 16)))
