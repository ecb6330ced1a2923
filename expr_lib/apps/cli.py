"""The command line, ``expr-lib``: each command is one function below, its arguments are the function's.

Nothing heavy is imported before a command is chosen, so that ``expr-lib --help`` answers at once. What a user can set
right (a missing file, a wrong number) ends in one line and exit code 2; anything else is a bug and keeps its traceback.
Annotations are values here, tyro reads them: no ``from __future__ import annotations``.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from expr_lib import SHIPPED, __version__
from expr_lib.apps.held_out import HELD_OUT_SEED, held_out_faces, say_if_unfamiliar, second_judge, unmet_judges
from expr_lib.apps.options import count, device_of, input_errors, may_write, parse, told
from expr_lib.errors import InputError

SHOWN_SIZE = 256
"""Pixels a side at which the moving generator is shown."""

Output = Annotated[Path, arg(aliases=["-o"])]
Checkpoint = Annotated[Path, arg(help_behavior_hint="(default: the shipped ones)")]


def demo(out: Output = Path("build/demo"), pairs: int = 48, checkpoint: Checkpoint = SHIPPED) -> None:
    """Swap the expressions of faces that training never saw, and measure it against the true answer.

    Args:
        out: folder for swap.png and metrics.json.
        pairs: how many pairs to measure; the first eight are in the picture.
        checkpoint: weights of the swapper (.safetensors).
    """
    began, pairs = time.perf_counter(), count("--pairs", pairs, 8, 100_000)
    may_write("--out", out, folder=True)
    import matplotlib

    matplotlib.use("Agg")
    from dataclasses import replace

    import numpy as np

    from expr_lib.faces.render import load_renderer
    from expr_lib.measure import plots
    from expr_lib.measure.evaluate import evaluate, write_results
    from expr_lib.swap import load, rest_images, swap_images

    swapper, renderer = load(checkpoint), load_renderer()
    judges = unmet_judges(checkpoint.name, swapper.metadata)
    plan = held_out_faces(swapper.config.size)
    results = evaluate(
        swapper, plan, renderer, judges, n_pairs=pairs, n_resamples=200,
        n_strata=0, n_probe=0, n_moves=0,
        about={"checkpoint": checkpoint.name, "seed_of_people": HELD_OUT_SEED, "command": "expr-lib demo"},
    )  # fmt: skip
    shown = results["swaps"][:8]  # the first of the seeded list, not the best
    a, b = np.array([(swap["a"], swap["b"]) for swap in shown]).T
    closer = replace(plan, size=SHOWN_SIZE) if swapper.config.generator == "moved" else plan
    (image_a, _), (image_b, _) = closer.render(renderer, a), closer.render(renderer, b)
    truth, _ = closer.render(renderer, a, au_rows=b)
    swapped, _ = swap_images(swapper, image_a, image_b)
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.swaps(image_a, image_b, swapped, truth, plan.au[b], rest_images(swapper, image_a))
    picture = plots.save(figure, out / "swap.png")
    shown_rows = ("ours", "copy-input", "true render")
    numbers = {key: results[key] for key in ("n_pairs", "n_subjects", "split", "size", "generator", "about", "seed")}
    numbers |= {"rows": {row: results["rows"][row] for row in shown_rows}}
    write_results(out / "metrics.json", numbers)

    print(f"\n{'':16}{'ours':>22}{'copy-input':>14}{'true render':>14}")
    for measure in ("gain", "nearer", "transfer_score", "au_icc", "identity_kept"):
        ours, copy, true = (results["rows"][row][measure] for row in shown_rows)
        value = f"{ours['value']:.2f} ({ours['low']:.2f} to {ours['high']:.2f})"
        print(f"{measure:16}{value:>22}{copy['value']:>14.2f}{true['value']:>14.2f}")
    print(f"\n{2 * pairs} swaps of people never met in training. copy-input does nothing, true render is perfect.")
    print(f"picture   {picture}\nnumbers   {out / 'metrics.json'}\n{time.perf_counter() - began:.0f} s")


def swap(
    a: Annotated[Positional[Path], arg(metavar="A")],
    b: Annotated[Positional[Path], arg(metavar="B")],
    out: Output = Path("swap.png"),
    inputs: bool = False,
    only: tuple[str, ...] = (),
    amount: float = 1.0,
    photographs: bool = False,
    largest: bool = False,
    face: int = 0,
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Swap the expressions of two image files: left, A with the expression of B; right, B with the expression of A.

    The largest centred square of each image is used; with --photographs the face is found, swapped and pasted back.
    The shipped weights have seen rendered faces only: on photographs expect the gist at best. A line on stderr says
    when an image is far from what they know.

    Args:
        a: an image file (PNG, JPEG, WebP, TIFF, ...).
        b: another one.
        out: PNG file to write.
        inputs: put the two input squares above the two results.
        only: action units to swap, such as AU12 AU25; all where none is named.
        amount: how far to go, from 0 (own expression) to 1 (the other's).
        photographs: find the face in each and paste the result back (extra photographs).
        largest: of several faces in a photograph take the largest.
        face: of several faces take this one, counted from 1 from left to right.
        checkpoint: weights of the swapper (.safetensors).
    """
    import numpy as np

    from expr_lib.images import read_image, square, write_png
    from expr_lib.importers.align import Choice, align, beside, paste

    may_write("--out", out, ending=".png")
    choice = _choice(largest, face)
    if choice != Choice() and not photographs:
        raise InputError("--largest and --face choose among the faces of photographs; expected --photographs with them")
    with input_errors():
        images = [read_image(path) for path in (a, b)]  # before the networks are imported: a wrong file is told at once

    from expr_lib.swap import amounts, load, swap_images

    swapper = load(checkpoint)
    weights = amounts(swapper.au_names, only, amount)
    size = _shown_size(swapper, *images)
    aligned = []
    for path, image in zip((a, b), images, strict=True) if photographs else ():
        with input_errors(f"{path}: "):
            aligned.append(align(image, size, choice))
    faces = np.stack([cut.face for cut in aligned] or [square(image, size) for image in images])  # (2, S, S, 3)
    swapped = np.stack(swap_images(swapper, faces[0], faces[1], weights))
    rows = np.stack([faces, swapped] if inputs else [swapped])  # (R, 2, S, S, 3)
    picture = rows.transpose(0, 2, 1, 3, 4).reshape(-1, 2 * size, 3)  # (R, 2, S, S, 3) -> (R * S, 2 * S, 3)
    if photographs:
        done = [paste(image, face, cut) for image, face, cut in zip(images, swapped, aligned, strict=True)]
        picture = np.concatenate([beside(*row) for row in ((images, done) if inputs else (done,))])
    write_png(out, picture)
    print(f"{out}: {a.name} with the expression of {b.name}, and the other way round")
    say_if_unfamiliar(swapper.metadata, (a, b), faces)


def express(
    face: Annotated[Positional[Path], arg(metavar="FACE")],
    intensities: Annotated[Positional[tuple[str, ...]], arg(metavar="AU=INTENSITY")],
    out: Output = Path("express.png"),
    from_rest: bool = False,
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Give a face an expression by numbers: expr-lib express FACE AU12=4 AU6=3 -o smile.png

    The largest centred square of the image is used, at its own resolution. Action units that are not named stay as they
    are read from the face.

    Args:
        face: an image file (PNG, JPEG, WebP, TIFF, ...).
        intensities: action units with intensities from 0 (absent) to 5 (FACS letter E).
        out: PNG file to write.
        from_rest: set all action units that are not named to 0.
        checkpoint: weights of the swapper (.safetensors).
    """
    from expr_lib.images import read_image, square, write_png

    may_write("--out", out, ending=".png")
    with input_errors():
        image = read_image(face)

    from expr_lib.swap import express_images, load, parse_expression

    swapper = load(checkpoint)
    asked = parse_expression(intensities, swapper.au_names)
    cut = square(image, _shown_size(swapper, image))
    write_png(out, express_images(swapper, cut, asked, from_rest))
    print(f"{out}: {face.name} with " + ", ".join(f"{name} {value:g}" for name, value in asked.items()))
    say_if_unfamiliar(swapper.metadata, (face,), cut[None])


def faces_command() -> Callable[..., None]:
    from expr_lib.faces.build import build
    from expr_lib.faces.plan import FacesConfig

    def faces(
        out: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("runs/faces"),
        config: Annotated[FacesConfig, arg(name="")] = FacesConfig(),  # noqa: B008 (frozen)
        device: str = "auto",
    ) -> None:
        """Render a data set of faces with known action units, or finish one that was interrupted.

        Args:
            out: folder of the data set.
            device: cpu, cuda, mps; auto takes the fastest there is.
        """
        may_write("FOLDER", out, folder=True)
        build(out, config, device=device_of(device))
        print(f"{out}: {config.n_subjects * config.images_per_subject} images of {config.n_subjects} people")

    return faces


def import_command() -> Callable[..., None]:
    from expr_lib.importers.write import ImportConfig, Kind, import_faces

    def import_(
        kind: Annotated[Positional[Kind], arg(metavar="FORM")],
        source: Annotated[Positional[Path], arg(metavar="SOURCE")],
        out: Annotated[Positional[Path], arg(metavar="FOLDER")],
        config: Annotated[ImportConfig, arg(name="")] = ImportConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """Bring in real data with AU labels, or finish an import that was interrupted; layouts: data/real_data.md.

        Args:
            kind: table, openface, pyfeat, blendshapes, disfa, bp4d (and BP4D+), ckplus, rafd or ganimation.
            source: folder with the images and labels; nothing outside it is read.
            out: data set folder to write.
        """
        may_write("FOLDER", out, folder=True)
        with input_errors():
            report = import_faces(kind, source, out, config)
        meta = json.loads((out / "meta.json").read_bytes())
        print(f"{out}: {meta['rows']:,} images, {', '.join(meta['au_names'])}")
        print("\n".join([f"{n:8,}  cut: {how}" for how, n in meta["config"]["cut"].items() if n] + report.lines()))
        print(f"every case with its place: {out / 'report.csv'}")

    return import_


def align(
    photographs: Annotated[Positional[tuple[Path, ...]], arg(metavar="PHOTOGRAPH")],
    out: Output = Path("aligned"),
    size: int = 256,
    largest: bool = False,
    face: int = 0,
) -> None:
    """Find the face in each photograph and cut it out as the rendered faces are; a contact sheet shows what was done.

    Needs the extra `photographs`. No photograph leaves this machine, and none is changed.

    Args:
        photographs: image files, or folders of them with all folders in these, such as one for each person.
        out: folder for NAME.png, one for each face, in the same folders; and contact-sheet.png, or several.
        size: pixels a side.
        largest: of several faces in a photograph take the largest.
        face: of several faces take this one, counted from 1 from left to right.
    """
    from expr_lib.importers.align import align_all

    count("--size", size, 16, 1024)
    may_write("--out", out, folder=True)
    with input_errors():
        for line in align_all(photographs, out, size, _choice(largest, face)):
            print(line)


def train_command() -> Callable[..., None]:
    from expr_lib import train as training
    from expr_lib.datasets import FaceData

    def train(
        data: Annotated[Positional[Path], arg(metavar="DATA")] = Path("runs/faces"),
        run: Path = Path("runs/swap"),
        start_from: Annotated[Path | None, arg(metavar="CHECKPOINT")] = None,
        allow_changes: bool = False,
        config: Annotated[training.TrainConfig, arg(name="")] = training.TrainConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """Train a swapper on a data set folder; started again with the same --run, it goes on where it stopped.

        Args:
            data: data set folder, made by `expr-lib faces`.
            run: folder for log.csv, samples/, tensorboard/ and checkpoint.safetensors.
            start_from: weights to fine-tune, without a warm-up; AUs that the data share with them keep their heads,
                others get new ones.
            allow_changes: go on with a run that was made with other settings or data; the checkpoint says which.
        """
        may_write("--run", run, folder=True)
        opened = FaceData.open(data, verify="once")
        print(training.train(config, opened, run, start_from, allow_changes=allow_changes))

    return train


def judges_command() -> Callable[..., None]:
    from expr_lib.measure.train_judges import JudgeConfig, train_judges

    def judges(
        data: Annotated[Positional[Path], arg(metavar="DATA")],
        out: Output = Path("runs/judges"),
        config: Annotated[JudgeConfig, arg(name="")] = JudgeConfig(),  # noqa: B008 (frozen)
        device: str = "auto",
    ) -> None:
        """Train the two judges that measure a swap, on people who appear nowhere else.

        Args:
            data: data set folder with a seed of its own, made by `expr-lib faces`.
            out: folder for the weights and the report.
            device: cpu, cuda, mps; auto takes the fastest there is.
        """
        may_write("--out", out, folder=True)
        report = train_judges(data, out, config, device=device_of(device))
        print(f"{out}: {', '.join(report['bytes'])}")

    return judges


def evaluate(
    checkpoint: Annotated[Positional[Checkpoint], arg(metavar="CHECKPOINT")] = SHIPPED,
    out: Output = Path("build/evaluate.json"),
    pairs: int = 500,
    seed: int = HELD_OUT_SEED,
    figures: Path | None = None,
    readme: Path | None = None,
    size: int | None = None,
    beside: tuple[Path, ...] = (),
    label: str | None = None,
    second_identity_judge: bool = False,
    device: str = "auto",
) -> None:
    """Measure a swapper beside trivial answers and the true render, on held-out people; print the table.

    Args:
        checkpoint: weights of the swapper (.safetensors).
        out: JSON file for every number; beside it every table as Markdown.
        pairs: how many pairs to swap, in both directions.
        seed: of the people; must be none that the swapper or the judges were trained on.
        figures: folder for the figures: transfer, each action unit, cross-talk, the best, median and worst swaps.
        readme: Markdown file whose table between the result markers is replaced.
        size: pixels a side of the faces, for a moving generator; by default those at which its encoder looks.
        beside: result files of other checkpoints, measured on the same pairs, that the table shows too.
        label: name of this checkpoint's row in tables.
        second_identity_judge: ask dlib's face recognizer too (extra photographs); half a second more for each swap.
        device: cpu, cuda, mps; auto takes the fastest there is.
    """
    count("--pairs", pairs, 6, 100_000)
    count("--size", 64 if size is None else size, 16, 1024)
    may_write("--out", out, ending=".json")
    may_write("--figures", figures or Path(), folder=True)
    import matplotlib

    from expr_lib.faces.render import load_renderer
    from expr_lib.measure import evaluate as measure
    from expr_lib.measure.report import write_report
    from expr_lib.swap import load

    matplotlib.use("Agg")
    if readme is not None:
        measure.find_table(readme)  # now, not after the measurement
    others = [measure.read_results(path) for path in beside]
    device = device_of(device)
    swapper, renderer = load(checkpoint, device), load_renderer(device)
    size = swapper.config.size if size is None else size
    if size != swapper.config.size and swapper.config.generator == "drawn":
        raise InputError(f"--size {size}: {checkpoint.name} draws images of {swapper.config.size} pixels and no others")
    judges, plan = unmet_judges(checkpoint.name, swapper.metadata, seed, device), held_out_faces(size, seed)
    second = second_judge(size, renderer) if second_identity_judge else None
    which = "" if checkpoint == SHIPPED else f" {checkpoint.name}"
    more = f" --size {size}" * (size != swapper.config.size) + " --second-identity-judge" * second_identity_judge
    command = f"expr-lib evaluate{which} --pairs {pairs} --seed {seed}{more}"
    about = {"command": command, "checkpoint": checkpoint.name, "label": label or checkpoint.stem}
    # what is in the features, and what moves alone, does not depend on the size of the picture
    n_probe, n_moves = (6000, 32) if size == swapper.config.size else (0, 0)
    results = measure.evaluate(
        swapper,
        plan,
        renderer,
        judges,
        n_pairs=pairs,
        device=device,
        about=about,
        second=second,
        n_probe=n_probe,
        n_moves=n_moves,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    measure.write_results(out, results)
    written = write_report(out.with_suffix(".md"), results, figures, swapper, plan, renderer)
    if readme is not None:
        measure.update_readme_table(readme, results, others)
    print(f"{measure.markdown_table(results, others)}\n\n" + "\n".join(map(str, [out, *written])))


def ship(
    source: Annotated[Positional[Path], arg(metavar="CHECKPOINT")] = Path("runs/swap/checkpoint.safetensors"),
    out: Output = Path("build/swap.safetensors"),
) -> None:
    """Keep of a training checkpoint what a swap needs: the averaged weights, a tenth of the file.

    Args:
        source: checkpoint.safetensors of a training run.
        out: file to write.
    """
    from expr_lib import checkpoint

    may_write("--out", out, ending=".safetensors")
    checkpoint.ship(source, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "demo": (demo, "swap held-out faces with the shipped weights; picture and numbers in build/demo"),
    "swap": (swap, "swap the expressions of two image files"),
    "express": (express, "give a face an expression by numbers, such as AU12=4"),
    "faces": (faces_command, "render a data set of faces with known action units"),
    "import": (import_command, "bring in real data with AU labels, such as DISFA, BP4D, CK+, or OpenFace tables"),
    "align": (align, "cut faces out of photographs as the rendered faces are"),
    "train": (train_command, "train a swapper on a data set"),
    "ship": (ship, "keep of a training checkpoint what a swap needs"),
    "judges": (judges_command, "train the judges that measure a swap"),
    "evaluate": (evaluate, "measure a swapper on held-out people"),
}
DEFERRED = (faces_command, import_command, train_command, judges_command)  # their arguments need an import

HELP = """usage: expr-lib COMMAND ...

Facial expression transfer via fine-grained representations (Shao et al., IEEE TIP 2021).

{commands}

expr-lib COMMAND --help shows the arguments of a command; --version shows the version.
Start with:  expr-lib demo"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0, or 2 after one line on stderr for what the user can set right."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
        parse(command() if command in DEFERRED else command, arguments[0], arguments[1:])()
    except (InputError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("EXPR_LIB_DEBUG"):
            raise
        print(f"expr-lib: error: {told(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("expr-lib: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _choice(largest: bool, face: int) -> Any:
    from expr_lib.importers.align import Choice

    if largest and face:
        raise InputError(f"--face {face}: expected a number from 1 on, and not --largest with it")
    return Choice(largest, count("--face", face, 0, 1000))


def _shown_size(swapper: Any, *images: Any) -> int:
    """Pixels a side of the result: those of the smallest image, 1024 at most, or what a drawing generator draws."""
    if swapper.config.generator == "drawn":
        return int(swapper.config.size)
    return min(1024, *(side for image in images for side in image.shape[:2]))


if __name__ == "__main__":
    main()
