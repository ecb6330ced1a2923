"""The mixer as static web pages: `expr-lib page` exports the networks to ONNX, and the browser runs them.

The server only serves files, and no picture leaves the visitor's machine. Two graphs are written: `encode` (a face ->
f_f, f_r and its AUs) and `generate` (f_f of one face, and f_r between those of two faces -> a picture). Their pixels
are RGBA, as in a canvas. `static/app.js` calls them through onnxruntime-web, which comes from npm.

tyro reads the annotations at run time, so this file has no `from __future__ import annotations`.
"""

import base64
import hashlib
import io
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expr_lib import SHIPPED, __version__
from expr_lib.apps.held_out import held_out_faces
from expr_lib.apps.options import Checkpoint, Output, count, may_write
from expr_lib.errors import InputError
from expr_lib.facs import ACTION_UNITS
from expr_lib.files import replace_file

if TYPE_CHECKING:
    import numpy as np

    from expr_lib.faces.plan import FacePlan
    from expr_lib.model import Swapper

STATIC = Path(__file__).parent / "static"
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The npm package, the hash of its archive, and the files that the page needs (WebAssembly on the CPU)."""
OPSET = 20
"""The first ONNX operator set with cubic GridSample, which `moving.warp` needs."""
NEEDS_WEB = 'the page needs onnx, onnxscript and onnxruntime: pip install "expr-lib[web]"'
N_FACES = 12
FRONTAL = 15.0
"""Largest yaw, in degrees, of the faces that are shown."""


def page(out: Output = Path("build/page"), size: int = 256, checkpoint: Checkpoint = SHIPPED) -> None:
    """Write a web page that mixes faces in the browser, for any static file server.

    Needs the extra `web`, and npm to fetch onnxruntime-web. Browsers do not load WebAssembly from file:// addresses, so
    serve the folder: python -m http.server -d build/page

    Args:
        out: folder to write.
        size: side of the faces in pixels.
        checkpoint: weights of a moving swapper (.safetensors).
    """
    count("--size", size, 64, 1024)
    may_write("--out", out, folder=True)
    from expr_lib.swap import load

    swapper = load(checkpoint)
    if swapper.config.generator != "moved":
        raise InputError(f"{checkpoint}: found a drawing generator, expected a moving one")
    runtime = runtime_files()  # first, because it needs the network

    from expr_lib.faces.render import load_renderer
    from expr_lib.images import write_png

    plan = held_out_faces(size)
    pixels = plan.render(load_renderer(), shown_rows(plan))[0].numpy()  # (N, S, S, 3) uint8
    encode, generate = export(swapper, size)
    off = max(difference(swapper, encode, generate, pixels[k], pixels[k - 1]) for k in range(3))
    if off > 1:
        raise InputError(f"the exported network differs from torch by {off} of 255, expected 1 at most")
    out.mkdir(parents=True, exist_ok=True)
    units = {unit.name: unit for unit in ACTION_UNITS}
    about: dict[str, Any] = {"version": __version__, "weights": checkpoint.name, "size": size}
    about["aus"] = [
        {"name": name, "words": units[name].muscle_action if name in units else name,
         "region": units[name].region if name in units else "other"}
        for name in swapper.au_names
    ]  # fmt: skip
    about["faces"] = [f"face-{k + 1}.png" for k in range(len(pixels))]
    for name, image in zip(about["faces"], pixels, strict=True):
        write_png(out / name, image)
    for name, content in {**runtime, "encode.onnx": encode, "generate.onnx": generate}.items():
        replace_file(out / name, content)
    replace_file(out / "about.json", json.dumps(about).encode())
    for source in sorted(STATIC.iterdir()):
        replace_file(out / source.name, source.read_bytes())
    total = sum(path.stat().st_size for path in out.iterdir())
    print(f"networks  {(len(encode) + len(generate)) / 1e6:.1f} MB, at most {off} of 255 different from torch")
    print(f"page      {out / 'index.html'}, {total / 1e6:.1f} MB in all")
    print(f"open it   python -m http.server -d {out}, then http://localhost:8000 (not as a file:// address)")


def shown_rows(plan: "FacePlan") -> list[int]:
    """The frontal row with the strongest expression of each person, for the first `N_FACES` people who have one."""
    strength = plan.au.sum(1).masked_fill(plan.views.yaw.abs() > FRONTAL, -1)  # (N,)
    best = [int(max((plan.subject == who).nonzero()[:, 0], key=lambda k: strength[k])) for who in plan.subject.unique()]
    return [row for row in best if strength[row] >= 0][:N_FACES]


def export(swapper: "Swapper", size: int) -> tuple[bytes, bytes]:
    """Export the networks as two ONNX graphs for a picture of `size` pixels a side.

    encode: pixels (1, S, S, 4) uint8 -> face (1, 3, S, S), map (1, C, 16, 16), f_r (1, n, d), au (1, n) in [0, 5], and
    rest (1, S, S, 4) uint8, the face at rest as pixels. generate: face, map, a (1, n, d) and b (1, n, d), weights (n,)
    -> pixels (1, S, S, 4) uint8. `ImportError` without the extra `web`.
    """
    import torch
    from torch import Tensor, nn

    from expr_lib.datasets import to_float, to_uint8
    from expr_lib.model import mix
    from expr_lib.moving import AtRest

    def rgba(image: Tensor) -> Tensor:
        pixels = to_uint8(image).permute(0, 2, 3, 1)  # (1, 3, S, S) -> (1, S, S, 3)
        return torch.cat([pixels, torch.full_like(pixels[..., :1], 255)], -1)

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swapper = swapper

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            f_f, f_r = self.swapper.encode(to_float(pixels[..., :3]).permute(0, 3, 1, 2))
            return f_f.face, f_f.map, f_r, self.swapper.intensities(f_r), rgba(f_f.face)

    class Generate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swapper = swapper

        def forward(self, face: Tensor, map: Tensor, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
            return rgba(self.swapper.generate(AtRest(face, map), mix(a, b, weights)))

    c, pixels = swapper.config, torch.zeros(1, size, size, 4, dtype=torch.uint8)
    a, b = torch.zeros(2, 1, c.n_aus, c.d)  # two tensors, since the exporter would treat one as a single input
    f_f = torch.zeros(1, 3, size, size), torch.zeros(1, c.c_f, c.grid, c.grid)
    return (
        _onnx(Encode().eval(), (pixels,), ["pixels"], ["face", "map", "f_r", "au", "rest"]),
        _onnx(Generate().eval(), (*f_f, a, b, torch.ones(c.n_aus)), ["face", "map", "a", "b", "weights"], ["pixels"]),
    )


def _onnx(network: Any, inputs: tuple[Any, ...], names: list[str], outputs: list[str]) -> bytes:
    import torch

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # hides a warning about torchvision, which is not needed
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                inputs,
                input_names=names,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except ImportError:
        raise ImportError(NEEDS_WEB) from None
    finally:
        log.setLevel(level)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def difference(swapper: "Swapper", encode: bytes, generate: bytes, a: "np.ndarray", b: "np.ndarray") -> int:
    """Largest difference of a pixel (0 to 255) between onnxruntime and torch when faces a and b (S, S, 3) are mixed.

    The weights of the AUs differ, from 0 to 1.5 (1 is b). `ImportError` without the extra `web`.
    """
    import numpy as np
    import torch

    from expr_lib.swap import rest_images, swap_images

    weights = np.linspace(0, 1.5, swapper.config.n_aus, dtype=np.float32)
    rest, mixed = rest_images(swapper, a), swap_images(swapper, a, b, torch.from_numpy(weights))[0]
    assert rest is not None  # of a moving generator
    ours, theirs = np.stack(onnx_mix(encode, generate, a, b, weights)), np.stack([rest, mixed])
    return int(abs(ours.astype(int) - theirs.astype(int)).max())


def onnx_mix(
    encode: bytes, generate: bytes, a: "np.ndarray", b: "np.ndarray", weights: "np.ndarray"
) -> tuple["np.ndarray", "np.ndarray"]:
    """The page's computation in onnxruntime: faces (S, S, 3) uint8 -> a at rest, and a mixed with b, (S, S, 3)."""
    import numpy as np
    import onnxruntime

    encoder, generator = (
        onnxruntime.InferenceSession(x, providers=["CPUExecutionProvider"]) for x in (encode, generate)
    )
    opaque = [np.dstack([x, np.full(x.shape[:2], 255, np.uint8)])[None] for x in (a, b)]  # (1, S, S, 4)
    (face, map, f_r_a, _, rest), (_, _, f_r_b, _, _) = (encoder.run(None, {"pixels": x}) for x in opaque)
    inputs = {"face": face, "map": map, "a": f_r_a, "b": f_r_b, "weights": weights}
    return rest[0, ..., :3], generator.run(None, inputs)[0][0, ..., :3]


def runtime_files() -> dict[str, bytes]:
    """The files of onnxruntime-web from npm; `InputError` without npm or a network, or if the hash differs."""
    try:
        import onnxruntime  # its Python package contains the licences, the one for the web does not
    except ImportError:
        raise ImportError(NEEDS_WEB) from None
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm: not found; expected Node.js with npm, to fetch onnxruntime-web")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--prefer-offline", "--fetch-retries=1"]
        command += [f"--pack-destination={folder}", RUNTIME]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = " ".join(done.stderr.split())[:200] or "no archive was downloaded"
            raise InputError(f"npm cannot fetch {RUNTIME}: {reason}")
        archive = archives[0].read_bytes()
    if (found := base64.b64encode(hashlib.sha512(archive).digest()).decode()) != RUNTIME_SHA512:
        raise InputError(f"{RUNTIME}: found an archive with SHA-512 {found}, expected {RUNTIME_SHA512}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        members = {name: files.extractfile(f"package/dist/{name}") for name in RUNTIME_FILES}
        found_files = {name: member.read() for name, member in members.items() if member}
    licences = [
        (Path(onnxruntime.__file__).parent / name).read_bytes() for name in ("LICENSE", "ThirdPartyNotices.txt")
    ]
    return found_files | {"onnxruntime-licences.txt": b"\n\n".join(licences)}
