"""The commands that make data and weights and measure them: ``expr-lib faces``, ``import``, ``align``, ``train``, ...

Nothing heavy is imported before a command runs. Annotations are values here, tyro reads them: no
``from __future__ import annotations``.
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
    input_errors,
    may_write,
    several,
)
from expr_lib.errors import InputError
from expr_lib.importers.choose import Choice


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
            kind: table, openface, pyfeat, blendshapes, disfa, bp4d (and BP4D+), ckplus, rafd, ganimation, or
                unlabelled (films and folders of images, each a take of one person).
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
    photographs: Annotated[Positional[tuple[Path, ...]], several("PHOTOGRAPH")],
    out: Output = Path("aligned"),
    size: int = 256,
    which: Which = Choice(),  # noqa: B008 (frozen)
) -> None:
    """Find the face in each photograph and cut it out as the rendered faces are; a contact sheet shows what was done.

    Needs the extra `photographs`. No photograph leaves this machine, and none is changed.

    Args:
        photographs: image files, or folders of them with all folders in these, such as one for each person.
        out: folder for NAME.png, one for each face, in the same folders; and contact-sheet.png, or several.
        size: pixels a side.
        which: one of several faces.
    """
    from expr_lib.importers.sheet import align_all

    if not photographs:
        raise InputError("PHOTOGRAPH: found nothing, expected image files, or folders of them")
    count("--size", size, 16, 1024)
    may_write("--out", out, folder=True)
    with input_errors():
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
        """Train a swapper on a data set folder; started again with the same --run, it goes on where it stopped.

        Args:
            data: data set folder, made by `expr-lib faces`.
            run: folder for log.csv, samples/, tensorboard/ and checkpoint.safetensors.
            start_from: weights to fine-tune, without a warm-up; AUs that the data share with them keep their heads,
                others get new ones. A shipped one may be called by its name, such as moved-64.
            allow_changes: go on with a run that was made with other settings or data; the checkpoint says which.
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
    figures: NoFile = None,
    readme: NoFile = None,
    size: NoNumber = None,
    beside: Files = (),
    label: NoText = None,
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
        size: pixels a side of the faces, for a moving generator; by default 64, at which the judges look.
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
    from expr_lib.measure import cards
    from expr_lib.measure import evaluate as measure
    from expr_lib.measure.report import write_report
    from expr_lib.swap import load

    matplotlib.use("Agg")
    if readme is not None:
        cards.find_table(readme)  # now, not after the measurement
    others = [measure.read_results(path) for path in beside]
    device = device_of(device)
    swapper, renderer = load(checkpoint, device), load_renderer(device)
    default = measured_size(swapper.config)
    size = default if size is None else size
    if size != swapper.config.size and swapper.config.generator == "drawn":
        raise InputError(f"--size {size}: {checkpoint.name} draws images of {swapper.config.size} pixels and no others")
    judges, plan = unmet_judges(checkpoint.name, swapper.metadata, seed, device), held_out_faces(size, seed)
    second = second_judge(size, renderer) if second_identity_judge else None
    which = "" if checkpoint == SHIPPED else f" {checkpoint.name}"
    more = f" --size {size}" * (size != default) + " --second-identity-judge" * second_identity_judge
    command = f"expr-lib evaluate{which} --pairs {pairs} --seed {seed}{more}"
    about = {"command": command, "checkpoint": checkpoint.name, "label": label or checkpoint.stem}
    # what is in the features, and what moves alone, does not depend on the size of the picture
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
    print(f"{measure.markdown_table(results, others)}\n\n" + "\n".join(map(str, [out, *written])))


def card(
    results: Annotated[Positional[Path], arg(metavar="RESULTS")],
    model_card: Annotated[Positional[Path], arg(metavar="CARD")],
    beside: Files = (),
) -> None:
    """Write the head and the tables of a model card from a result file; what it says in words stays. Extra `train`.

    Args:
        results: JSON file that `expr-lib evaluate` wrote.
        model_card: Markdown file beside the weights, with the two lines between which the tables stand.
        beside: result files of other checkpoints that the table shows too.
    """
    from expr_lib.measure.cards import update_tables
    from expr_lib.measure.evaluate import read_results

    update_tables(model_card, read_results(results), [read_results(path) for path in beside], card=True)
    print(model_card)


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
