"""`python -m training fit|validate|test --config docs/examples/tiny.yaml`: Lightning's own command line over
`TextureModule` and `TextureDataModule`.

`seqtex train` is for runs that must survive kills, damaged files and full queues; this is for trainers, callbacks and
loggers of your own, and subclasses of the module, all by `class_path`."""

import sys

from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from schemas.errors import UsageError, UserError
from training.data.datamodule import TextureDataModule
from training.module import TextureModule


class CommandLine(LightningCLI):
    """Lightning's command line, which leaves no option out without a word."""

    def before_instantiate_classes(self) -> None:
        """Raise UsageError for a schedule without an optimizer, which Lightning would leave out."""
        options = self.config[self.subcommand]
        if options.get("lr_scheduler") and not options.get("optimizer"):
            raise UsageError(
                "--lr_scheduler takes effect with --optimizer alone: give both, or set the module's own schedule by "
                "--model.optimizer.warmup_steps and --model.optimizer.final_share"
            )


def main(arguments: ArgsType = None) -> LightningCLI:
    """Run the command line, and return it with its trainer.

    arguments: in place of those of the process. `model` and `data` are the two classes or subclasses of them.
    """
    return CommandLine(
        TextureModule,
        TextureDataModule,
        seed_everything_default=False,  # every random number is a function of the module's own seed
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},  # a run that goes on, without a folder for each start
        args=arguments,
    )


def exit_code() -> int:
    """Run the command line of this process; errors that a user can fix are one sentence, as those of `seqtex`."""
    try:
        main()
    except (UserError, MisconfigurationException) as error:
        sys.stderr.write(f"python -m training: {error}\n")
        return 2 if isinstance(error, UsageError | MisconfigurationException) else 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code())
