"""`python -m training fit|validate|test --config docs/examples/tiny.yaml`: Lightning's own command line over
`TextureModule` and `TextureDataModule`.

`seqtex train` is for runs that must survive kills, damaged files and full queues; this is for trainers, callbacks and
loggers of your own, and subclasses of the module, all by `class_path`."""

from lightning.pytorch.cli import ArgsType, LightningCLI

from training.data.datamodule import TextureDataModule
from training.module import TextureModule


def main(arguments: ArgsType = None) -> LightningCLI:
    """Run the command line.

    arguments: in place of those of the process. `model` and `data` are the two classes or subclasses of them.
    """
    return LightningCLI(
        TextureModule,
        TextureDataModule,
        seed_everything_default=False,  # every random number is a function of the module's own seed
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
    )


if __name__ == "__main__":
    # Under its own name, so that the classes are those that others import.
    from training.__main__ import main as run

    run()
