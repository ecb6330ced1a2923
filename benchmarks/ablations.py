"""What does each part of the method contribute? The same training without it, or with one more, at equal images seen.

    python benchmarks/ablations.py runs/faces-64 --start-from expr_lib/weights/moved-64.safetensors --anew --steps 500
    python benchmarks/ablations.py runs/unpaired --start-from expr_lib/weights/swap-64.safetensors --steps 400
    python benchmarks/ablations.py runs/unpaired --steps 3000      # started again, it continues where it stopped

With data in takes, the second generation is trained (`IN_TAKES`), otherwise the first, unpaired (`UNPAIRED`). All
variants continue from one common start for `--steps` steps, on the same batches and with the same noise: the end of a
warm-up, trained once, or with `--start-from` a trained network. The latter shows which parts are needed to maintain
what has been learned, and it takes far fewer steps. With `--anew` only E and the AU branch are taken from it, and the
generator starts from random weights. All are measured as in `expr-lib evaluate`, on the same held-out
pairs. `SEEDS` gives the variants with several seeds, which show how much a seed alone changes; the seed determines
batches and noise, but not the start.

Writes benchmarks/results/ablations.json, .md and .png (or `--out`); runs and their results stay in `--runs`.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import LEAKS, begin_with, keep, leaks_of, picture, recipe, table, write_encoder

from expr_lib import checkpoint
from expr_lib.apps.held_out import held_out_faces, measured_size
from expr_lib.datasets import FaceData
from expr_lib.faces.render import load_renderer
from expr_lib.measure.evaluate import evaluate, write_results
from expr_lib.measure.judges import load_judges
from expr_lib.model import ModelConfig
from expr_lib.step import TrainConfig
from expr_lib.train import accelerator, settled, train

# what differs from the full method: a setting, weights of losses, or sizes
IN_TAKES: dict[str, dict[str, Any]] = {
    "full method": {},
    "Adam instead of Muon": {"muon": False},
    "no guidance": {"take_weights": {"guide": 0.0}},
    "no face at rest": {"take_weights": {"rest": 0.0}},
    "with cross-cycle": {"take_weights": {"cycle": 20.0}},
    "with AU adversary on f_f": {"take_weights": {"hide_au": 2.0}},
    "with subject adversary": {"take_weights": {"hide_subject": 0.1}},
    "with realism and swap consistency": {"take_weights": {"realism": 1.0, "swap": 1.0}},
    "drawn instead of moved": {"generator": "drawn"},
    "unpaired instead of takes": {"generator": "moved", "supervision": "unpaired"},
    "drawn and unpaired (the paper)": {"generator": "drawn", "supervision": "unpaired"},
}
UNPAIRED: dict[str, dict[str, Any]] = {
    "full method": {},
    "no adversary on f_f": {"adversary": "none"},
    "gradient reversal": {"adversary": "reversal"},
    "inverted labels": {"adversary": "inverted"},
    "no swap consistency": {"weights": {"swap": 0.0}},
    "swaps like the cross-cycle": {"consistency": "cycle"},
    "no cross-cycle": {"weights": {"cycle": 0.0}},
    "cross-cycle through both passes": {"detach_swap": False},
    "roomy f_f": {"model": {"noise": 0.1}},
    "no subject adversary": {"weights": {"hide_subject": 0.0}},
    "reconstruction reaches f_r": {"detach_f_r": False},
}
VARIANTS = IN_TAKES | UNPAIRED
SEEDS = {"full method": 3, "no adversary on f_f": 3}  # the others: one
SHOWN = ("gain", "transfer_score", "au_icc", "own_expression_left", "identity_kept", "sharpness", "psnr")


def config_of(variant: str, seed: int, full: TrainConfig) -> TrainConfig:
    changes = dict(VARIANTS[variant])
    parts = {x: replace(getattr(full, x), **changes.pop(x, {})) for x in ("weights", "take_weights", "model")}
    return replace(full, seed=seed, **parts, **changes)


def learn(
    data: FaceData, runs: Path, full: TrainConfig, variants: list[str], start_from: Path | None
) -> dict[tuple[str, int], Path]:
    """Train every variant, from `start_from` or from a warm-up that is trained once -> (variant, seed): checkpoint."""
    warm = None if start_from else train(replace(full, steps=full.warmup_steps, cooldown=0.0), data, runs / "warm-up")
    done = {}
    for variant in variants:
        for seed in range(SEEDS.get(variant, 1)):
            run = runs / f"{variant.replace(' ', '-')}-{seed}"
            if warm:
                begin_with(warm, run)
            print(f"{variant}, seed {seed}: {run}", flush=True)
            done[variant, seed] = train(config_of(variant, seed, full), data, run, start_from, allow_changes=bool(warm))
    return done


def measured(path: Path, pairs: int, probe: int, device: str) -> dict[str, Any]:
    """What `evaluate` finds for a checkpoint, kept beside it for as long as all that it was asked stays the same."""
    _, about = checkpoint.load(path)

    def measure() -> dict[str, Any]:
        swapper = checkpoint.load_swapper(path, device)
        plan = held_out_faces(measured_size(swapper.config))
        results = evaluate(
            swapper, plan, load_renderer(device), load_judges(device), n_pairs=pairs, n_resamples=200, n_strata=0,
            n_moves=0, n_probe=probe, device=device,
        )  # fmt: skip
        return {"step": about["step"], **results["rows"]["ours"], **leaks_of(results)}

    made = {"checkpoint": about["sha256"], "pairs": pairs, "probe": probe}
    return keep(path.with_name("ablation.json"), made, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--steps", type=int, default=3000, help="of each variant, after the warm-up")
    parser.add_argument("--warmup-steps", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=200, help="held-out pairs to measure")
    parser.add_argument("--probe", type=int, default=6000, help="faces that the probe of f_f learns from; 0: no probe")
    parser.add_argument("--start-from", type=Path, help="a checkpoint to begin with, instead of a warm-up")
    parser.add_argument("--anew", action="store_true", help="of --start-from keep only E and the AU branch")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="default: all of the generation"
    )
    parser.add_argument("--width", type=int, default=ModelConfig.width, help="of E and G; the other widths follow")
    parser.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    args = parser.parse_args()
    if args.anew and not args.start_from:
        parser.error("--anew needs --start-from")
    data = FaceData.open(args.data)
    warmup_steps = 0 if args.start_from else args.warmup_steps
    widths = ModelConfig(width=args.width, width_r=2 * args.width, width_d=args.width // 2)
    full = recipe(args.steps, warmup_steps, batch_size=args.batch_size, device=args.device, model=widths)
    takes = settled(full, data.subset("train")).supervision == "takes"
    names = args.variants or list(IN_TAKES if takes else UNPAIRED)
    begin = args.start_from
    if args.anew and not (begin := args.runs / "encoder.safetensors").exists():
        write_encoder(args.start_from, begin)
    done = learn(data, args.runs, full, names, begin)
    device = accelerator(full).device.type
    rows = [
        {"variant": v, "seed": s, **measured(path, args.pairs, args.probe, device)} for (v, s), path in done.items()
    ]
    images = 2 * (args.steps * args.batch_size + warmup_steps * full.warmup_batch_size)
    part = "E and the AU branch of" if args.anew else "the weights"
    start = f"{part} {args.start_from.name}" if args.start_from else f"one warm-up of {warmup_steps} steps"
    about = {"data": args.data.name, "start": start, "steps": args.steps, "images_seen": images, "pairs": args.pairs,
             "probe": args.probe, "width": full.model.width, "batch_size": args.batch_size}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_results(args.out, {"about": about, "variants": {name: str(VARIANTS[name]) for name in names}, "rows": rows})
    note = (
        f"{args.steps} steps of {args.batch_size} pairs for each variant from {start} ({images:,} images seen), "
        f"networks of width {full.model.width}, {args.pairs} held-out pairs in both directions. In brackets the range "
        "over seeds, where there are several, else the 95 % interval over people. A difference smaller than the range "
        "over the seeds of the full method is noise."
    )
    leaks = LEAKS if args.probe else {}
    text = f"{table(rows, names, (*SHOWN, *leaks))}\n\n{note}\n"
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(rows, names, (*SHOWN[:3], *leaks), args.out.with_suffix(".png"))
    print(f"{text}\nwritten: {args.out}")


if __name__ == "__main__":
    main()
