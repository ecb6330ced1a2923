"""The command line, `expr-lib`. Each command is one function, whose arguments are those of the command.

Heavy packages are imported after a command has been chosen, so that `expr-lib --help` answers at once. An error that
the user can correct, such as a missing file, ends with one line and exit code 2; any other error is a bug and keeps its
traceback.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from expr_lib import __version__
from expr_lib.apps import animate, course, demo, page, pictures, reading, research
from expr_lib.apps.options import one_line, parse
from expr_lib.errors import InputError

COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "demo": (demo.demo, "swap held-out faces with the shipped weights; picture and numbers in build/demo"),
    "swap": (pictures.swap, "swap the expressions of two image files"),
    "express": (pictures.express, "give a face an expression by numbers, such as AU12=4"),
    "animate": (animate.animate, "give a still face the expressions of a film, frame by frame"),
    "read": (reading.read, "read the action units of faces into a table"),
    "course": (course.course, "copy the course into a folder: notebooks, data and assignments"),
    "app": (course.app, "mix expressions with sliders, in the browser"),
    "page": (page.page, "write a web page that mixes faces in the browser; the server only serves files"),
    "faces": (research.faces_command, "render a data set of faces with known action units"),
    "import": (
        research.import_command,
        "import real data with AU labels, such as DISFA, BP4D, CK+, or OpenFace tables",
    ),
    "align": (research.align, "crop faces from photographs in the frame of the rendered faces"),
    "train": (research.train_command, "train a swapper on a data set"),
    "ship": (research.ship, "reduce a training checkpoint to the weights that a swap needs"),
    "judges": (research.judges_command, "train the judges that measure a swap"),
    "card": (research.card, "write the head and the tables of a model card from a result file"),
    "evaluate": (research.evaluate, "measure a swapper on held-out people"),
}
NEED_AN_IMPORT = (research.faces_command, research.import_command, research.train_command, research.judges_command)
"""Functions that import the config class of a command and return the command."""

HELP = """usage: expr-lib COMMAND ...

Facial expression transfer via fine-grained representations (Shao et al., IEEE TIP 2021).

{commands}

expr-lib COMMAND --help shows the arguments of a command; --version shows the version.
Start with:  expr-lib demo"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0, or 2 after one line on stderr for an error that the user can correct."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are not UTF-8
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:10}{line}" for name, (_, line) in COMMANDS.items())))
        return
    if arguments[0] in ("-V", "--version"):
        print(f"expr-lib {__version__}")
        return
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"no command {arguments[0]!r}; expected one of {', '.join(COMMANDS)}")
        command = COMMANDS[arguments[0]][0]
        parse(command() if command in NEED_AN_IMPORT else command, arguments[0], arguments[1:])()
    except (InputError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("EXPR_LIB_DEBUG"):
            raise
        print(f"expr-lib: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("expr-lib: stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
