"""The commands for data, training and evaluation: `expr-lib faces`, `import`, `align`, `train`, ...

Heavy packages are imported when a command runs. tyro reads the annotations at run time, so this file has no
`from __future__ import annotations`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from expr_lib import SHIPPED, WEIGHTS
from expr_lib.apps.held_out import HELD_OUT_SEED, held_out_faces, measured_size, second_judge, unmet_judges
from expr_lib.apps.options import (
    Checkpoint,
    Files,
    NoFile,
    NoNumber,
    NoText,
    Output,
    Which,
    count,
    device_of,
    may_write,
    several,
)
from expr_lib.errors import InputError
from expr_lib.files import keep_inputs
from expr_lib.importers.choose import Choice


def faces_command() -> Callable[..., None]:
    from expr_lib.faces.build import build
    from expr_lib.faces.plan import FacesConfig

    def faces(
        out: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("runs/faces"),
        config: Annotated[FacesConfig, arg(name="")] = FacesConfig(),  # noqa: B008 (frozen)
        device: str = "auto",
    ) -> None:
        """Render a data set of faces with known action units, or continue an interrupted one.

        Args:
            out: folder of the data set.
            device: cpu, cuda or mps; auto is the fastest that is available.
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
        """Import real data with AU labels, or continue an interrupted import; for the forms see data/real_data.md.

        Args:
            kind: table, openface, pyfeat, blendshapes, disfa, bp4d (and BP4D+), ckplus, rafd, ganimation, or
                unlabelled (films and folders of images, each a take of one person).
            source: folder with the images and labels; no file outside it is read.
            out: data set folder to write.
        """
        may_write("FOLDER", out, folder=True)
        report = import_faces(kind, source, out, config)
        meta = json.loads((out / "meta.json").read_bytes())
        print(f"{out}: {meta['rows']:,} images, {', '.join(meta['au_names'])}")
        print("\n".join([f"{n:8,}  cut: {how}" for how, n in meta["config"]["cut"].items() if n] + report.lines()))
        print(f"list of all cases: {out / 'report.csv'}")

    return import_


def align(
    photographs: Annotated[Positional[tuple[Path, ...]], several("PHOTOGRAPH")],
    out: Output = Path("aligned"),
    size: int = 256,
    which: Which = Choice(),  # noqa: B008 (frozen)
) -> None:
    """Find the face in each photograph and crop it in the frame of the rendered faces; contact sheets show the results.

    Needs the extra `photographs`. The photographs stay on this machine and are not changed.

    Args:
        photographs: image files, or folders of image files with all their subfolders, such as one for each person.
        out: folder for the faces, NAME.png in the same subfolders, and for one or more contact sheets.
        size: side of the faces in pixels.
        which: choice among several faces.
    """
    from expr_lib.importers.sheet import align_all

    if not photographs:
        raise InputError("PHOTOGRAPH: found nothing, expected image files, or folders of them")
    count("--size", size, 16, 1024)
    may_write("--out", out, folder=True)
    for line in align_all(photographs, out, size, which):
        print(line)


def train_command() -> Callable[..., None]:
    from expr_lib import train as training
    from expr_lib.datasets import FaceData

    def train(
        data: Annotated[Positional[Path], arg(metavar="DATA")] = Path("runs/faces"),
        run: Path = Path("runs/swap"),
        start_from: Annotated[Path | None, arg(metavar="CHECKPOINT", help_behavior_hint="")] = None,
        allow_changes: bool = False,
        config: Annotated[training.TrainConfig, arg(name="")] = training.TrainConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """Train a swapper on a data set folder; with the same --run again, training continues where it stopped.

        Args:
            data: data set folder, made by `expr-lib faces` or `expr-lib import`.
            run: folder for log.csv, samples/, tensorboard/ and checkpoint.safetensors.
            start_from: weights to fine-tune, without a warm-up; AUs that these share with the data keep their heads,
                other AUs get new heads. Shipped weights can be given by name, such as moved-64.
            allow_changes: continue a run that was made with other settings or data; the checkpoint records them.
        """
        may_write("--run", run, folder=True)
        opened = FaceData.open(data, verify="once")
        if start_from and not start_from.exists() and (shipped := WEIGHTS / f"{start_from}.safetensors").exists():
            start_from = shipped
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
        """Train the two judges that measure a swap, on people who are in no other data set.

        Args:
            data: data set folder with its own seed, made by `expr-lib faces`.
            out: folder for the weights and the report.
            device: cpu, cuda or mps; auto is the fastest that is available.
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
    figures: NoFile = None,
    readme: NoFile = None,
    size: NoNumber = None,
    beside: Files = (),
    label: NoText = None,
    second_identity_judge: bool = False,
    device: str = "auto",
) -> None:
    """Measure a swapper on held-out people, compare it with trivial answers and true renders, and print the table.

    Args:
        checkpoint: weights of the swapper (.safetensors).
        out: JSON file for all numbers; a Markdown file with all tables is written beside it.
        pairs: number of pairs to swap, in both directions.
        seed: seed of the people; it must differ from those of the training of the swapper and the judges.
        figures: folder for the figures of transfer, each action unit, cross-talk, and best, median and worst swaps.
        readme: Markdown file in which the table between the result markers is replaced.
        size: side of the faces in pixels, for a moving generator; by default 64, the size of the judges.
        beside: result files of other checkpoints, measured on the same pairs, to add to the table.
        label: name of this checkpoint's row in tables.
        second_identity_judge: also use dlib's face recognizer (extra photographs), which takes 0.5 s for each swap.
        device: cpu, cuda or mps; auto is the fastest that is available.
    """
    count("--pairs", pairs, 6, 100_000)
    count("--size", 64 if size is None else size, 16, 1024)
    may_write("--out", out, ending=".json")
    may_write("--figures", figures or Path(), folder=True)
    keep_inputs([out.with_suffix(".md")], [readme] if readme else [])
    import matplotlib

    from expr_lib.faces.render import load_renderer
    from expr_lib.measure import cards
    from expr_lib.measure import evaluate as measure
    from expr_lib.measure.report import write_report
    from expr_lib.swap import load

    matplotlib.use("Agg")
    if readme is not None:
        cards.find_table(readme)  # fails now rather than after the measurement
    others = [measure.read_results(path) for path in beside]
    device = device_of(device)
    swapper, renderer = load(checkpoint, device), load_renderer(device)
    default = measured_size(swapper.config)
    size = default if size is None else size
    if size != swapper.config.size and swapper.config.generator == "drawn":
        raise InputError(f"--size {size}: {checkpoint.name} draws images of {swapper.config.size} pixels only")
    judges, plan = unmet_judges(checkpoint.name, swapper.metadata, seed, device), held_out_faces(size, seed)
    second = second_judge(size, renderer) if second_identity_judge else None
    which = "" if checkpoint == SHIPPED else f" {checkpoint.name}"
    more = f" --size {size}" * (size != default) + " --second-identity-judge" * second_identity_judge
    command = f"expr-lib evaluate{which} --pairs {pairs} --seed {seed}{more}"
    about = {"command": command, "checkpoint": checkpoint.name, "label": label or checkpoint.stem}
    # leaks and cross-talk do not depend on the size of the images, so they are measured at the default size only
    n_probe, n_moves, n_express = (6000, 32, 100) if size == default else (0, 0, 0)
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
        n_express=n_express,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    measure.write_results(out, results)
    written = write_report(out.with_suffix(".md"), results, figures, swapper, plan, renderer)
    if readme is not None:
        cards.update_tables(readme, results, others)
    print(f"{cards.markdown_table(results, others)}\n\n" + "\n".join(map(str, [out, *written])))


def card(
    results: Annotated[Positional[Path], arg(metavar="RESULTS")],
    model_card: Annotated[Positional[Path], arg(metavar="CARD")],
    beside: Files = (),
) -> None:
    """Write the head and the tables of a model card from a result file; its text is kept. Needs the extra `train`.

    Args:
        results: JSON file that `expr-lib evaluate` wrote.
        model_card: Markdown file beside the weights, with the two markers between which the tables are written.
        beside: result files of other checkpoints to add to the table.
    """
    from expr_lib.measure.cards import update_tables
    from expr_lib.measure.evaluate import read_results

    update_tables(model_card, read_results(results), [read_results(path) for path in beside], card=True)
    print(model_card)


def ship(
    source: Annotated[Positional[Path], arg(metavar="CHECKPOINT")] = Path("runs/swap/checkpoint.safetensors"),
    out: Output = Path("build/swap.safetensors"),
) -> None:
    """Write the averaged weights of a training checkpoint, a tenth of its size, which suffice for a swap.

    Args:
        source: checkpoint.safetensors of a training run.
        out: file to write.
    """
    from expr_lib import checkpoint

    may_write("--out", out, ending=".safetensors")
    checkpoint.ship(source, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
