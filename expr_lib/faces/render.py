"""Vertices to pixels: a batched z-buffer renderer in plain PyTorch, the same code on CPU, CUDA and MPS.

Three steps: ``rasterize`` finds which triangle each (sub)pixel sees, ``Renderer.shade`` colours the pixels that see
one, and averaging the subpixels softens the edges. No Python loop runs over images. All of it is our choice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib.faces.head import HeadModel
from expr_lib.faces.sample import Subjects, Views
from expr_lib.facs import AU_NAMES, MAX_INTENSITY

CAMERA_DISTANCE = 1.1  # metres from the middle of the head
FIELD = 0.280  # metres that the image spans at that distance, at zoom 1
CENTRE_HEIGHT = 0.010  # metres: the image is centred a little below the eyes
GAMMA = 2.2

CREASES = {  # which action units deepen which map, with what share
    "crease_forehead": {"AU1": 0.8, "AU2": 0.7},
    "crease_glabella": {"AU4": 1.0, "AU9": 0.3},
    "crease_nose": {"AU9": 1.0, "AU10": 0.2},
    "crease_crow": {"AU6": 0.9, "AU7": 0.25, "AU43": 0.2},
    "crease_nasolabial": {"AU10": 0.9, "AU12": 0.7, "AU9": 0.6, "AU20": 0.2},
    "crease_mouth": {"AU14": 0.9, "AU15": 0.7, "AU20": 0.5, "AU12": 0.3},
    "crease_chin": {"AU17": 1.0, "AU15": 0.4},
    "crease_undereye": {"AU6": 0.7, "AU7": 0.6},
}


def rasterize(points: Tensor, triangles: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which triangle does each pixel see?

    Triangles are sorted into classes by the size of their bounding box; within a class every triangle offers the same
    number of candidate pixels, so that each class is one batched test. The nearest candidate wins (``amin``).

    Args:
        points: (B, V, 3) x right, y down in pixels, and distance from the camera (any unit, positive).
        triangles: (F, 3), counter-clockwise as seen from the camera; the others are culled.
        size: pixels along an edge.

    Returns:
        pixel (M,) flat index into (B, size, size), triangle (M,) flat index into (B, F), weights (M, 3) barycentric.
    """
    batch, device = len(points), points.device
    x, y, z = points.index_select(1, triangles.flatten()).unflatten(1, triangles.shape).unbind(-1)  # each (B, F, 3)
    area = (x[..., 1] - x[..., 0]) * (y[..., 2] - y[..., 0]) - (x[..., 2] - x[..., 0]) * (y[..., 1] - y[..., 0])
    left, top = (x.amin(-1) - 0.5).ceil().clamp(min=0), (y.amin(-1) - 0.5).ceil().clamp(min=0)
    right, bottom = (x.amax(-1) - 0.5).floor().clamp(max=size - 1), (y.amax(-1) - 0.5).floor().clamp(max=size - 1)
    extent = torch.maximum(right - left, bottom - top) + 1.0
    visible = (area < 0) & (right >= left) & (bottom >= top)  # y points down: counter-clockwise has negative area
    chosen = visible.flatten().nonzero().squeeze(1)  # (n,) flat (B, F)
    x, y, z = (t.flatten(0, 1).index_select(0, chosen) for t in (x, y, z))  # (n, 3)
    area, left, top, extent = (t.flatten().index_select(0, chosen) for t in (area, left, top, extent))
    # barycentric weights are affine in the pixel: w_k = a_k * px + b_k * py + c_k, relative to the box's corner
    nx, ny = x.roll(-1, 1), y.roll(-1, 1)
    px, py = x.roll(-2, 1), y.roll(-2, 1)
    inverse = 1.0 / area[:, None]
    a, b = (ny - py) * inverse, (px - nx) * inverse
    c = ((nx * py - px * ny) * inverse) + a * (left + 0.5)[:, None] + b * (top + 0.5)[:, None]
    corner = (chosen // len(triangles)) * size * size + (top * size + left).long()
    za, zb, zc = (a * z).sum(1), (b * z).sum(1), (c * z).sum(1)

    found: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    edge, previous = 1, 0
    while previous < size:
        row = ((extent > previous) & (extent <= edge)).nonzero().squeeze(1)
        for part in row.split(max(1, 1 << 22 // (edge * edge))) if edge > 64 else (row,):
            if not len(part):
                continue
            offset = torch.arange(edge, device=device)
            ox, oy = offset.repeat(edge).to(x), offset.repeat_interleave(edge).to(x)  # (edge*edge,)
            w = [a[part, k, None] * ox + b[part, k, None] * oy + c[part, k, None] for k in range(3)]
            inside = torch.minimum(torch.minimum(w[0], w[1]), w[2]) >= 0
            inside &= (left[part, None] + ox < size) & (top[part, None] + oy < size)
            r, k = inside.nonzero(as_tuple=True)
            source = part[r]
            depth = za[source] * ox[k] + zb[source] * oy[k] + zc[source]
            pixel = corner[source] + (oy[k] * size + ox[k]).long()
            found.append((pixel, depth, source, ox[k], oy[k]))
        previous, edge = edge, min(edge + 1 if edge < 4 else edge * 2, max(size, 4))
        if previous == edge:
            break
    if not found:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return empty, empty, points.new_zeros(0, 3)
    pixel, depth, source, ox, oy = (torch.cat(t) for t in zip(*found, strict=True))
    nearest = depth.new_full((batch * size * size,), math.inf).scatter_reduce(0, pixel, depth, "amin")
    winner = (depth <= nearest[pixel]).nonzero().squeeze(1)
    # two triangles may tie on a shared edge: the later candidate takes the pixel, on every device
    best = torch.full((batch * size * size,), -1, device=device).scatter_reduce(0, pixel[winner], winner, "amax")
    pixel = (best >= 0).nonzero().squeeze(1)
    best = best[pixel]
    source = source[best]
    weights = a[source] * ox[best, None] + b[source] * oy[best, None] + c[source]
    return pixel, chosen[source], weights


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """(B, V, 3) unit normals, area-weighted over the triangles around each vertex."""
    a, b, c = (vertices.index_select(1, triangles[:, k]) for k in range(3))  # (B, F, 3)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(1, triangles[:, k], normal)
    return F.normalize(total, dim=-1, eps=1e-12)


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """(B, 3, 3) rotation matrices from degrees: roll, then pitch, then yaw."""
    (cy, sy), (cp, sp), (cr, sr) = (
        (torch.cos(t), torch.sin(t)) for t in (yaw.deg2rad(), -pitch.deg2rad(), roll.deg2rad())
    )
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*rows):
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    turn = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    nod = matrix((one, zero, zero), (zero, cp, -sp), (zero, sp, cp))
    tilt = matrix((cr, -sr, zero), (sr, cr, zero), (zero, zero, one))
    return turn @ nod @ tilt


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def blend(attributes: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """(M, C): attributes (rows, C) at three corners (M, 3), mixed by barycentric weights (M, 3)."""
    mixed = attributes.index_select(0, corners[:, 0]) * weights[:, :1]
    for k in (1, 2):
        mixed = mixed.addcmul(attributes.index_select(0, corners[:, k]), weights[:, k : k + 1])
    return mixed


def per_pixel(image: Tensor, **values: Tensor) -> dict[str, Tensor]:
    """Values of each image (B,) or (B, C) -> values of each pixel (M,) or (M, C), gathered in one go."""
    table = torch.cat([value.flatten(1) if value.ndim > 1 else value[:, None] for value in values.values()], 1)
    columns = table.index_select(0, image).split([1 if v.ndim == 1 else v.shape[1] for v in values.values()], 1)
    return {name: c.squeeze(1) if v.ndim == 1 else c for (name, v), c in zip(values.items(), columns, strict=True)}


def linear(srgb: Tensor) -> Tensor:
    return srgb.clamp(0.0, 1.0) ** GAMMA


class Renderer(nn.Module):
    """``renderer(subjects, au, views, size) -> image (B, 3, S, S) in [0, 1], face mask (B, S, S) bool``."""

    def __init__(self, head: HeadModel, supersample: int = 2) -> None:
        super().__init__()
        self.head, self.supersample = head, supersample
        mean, part, triangles = head.mean, head.part, head.triangles
        names = list(head.map_names)
        uv = head.map_uv
        at_vertex = F.grid_sample(head.maps[None], uv[None, None].clamp(-1, 1), align_corners=False)[
            0, :, 0
        ].T  # (V, M)
        of_part = torch.zeros(len(mean), dtype=torch.long)
        of_part[triangles.flatten()] = part.repeat_interleave(3)
        lips, _lids, ears, mouth, fold = head.region.unbind(1)
        # 0.5 on the hairline, one unit = 8 cm; behind the map's edge everything above the nape is scalp
        scalp = at_vertex[:, names.index("hairline")]
        back = ((mean[:, 1] + 0.05) / 0.08 + 0.5).clamp(0, 1)
        scalp = torch.where(uv[:, 0].abs() > 0.98, back, scalp) * (1 - ears)
        scalp[of_part != 0] = 0.0
        x, y, z = mean.unbind(1)
        face = smoothstep(z, 0.0, 0.02) * smoothstep(y, -0.092, -0.082) * (1 - ears)
        cloth = 0.30 * x.abs() - y  # metres; the shirt begins at 0.152, lower in front than on the shoulders
        self.register_buffer("scalp", scalp)
        inside = mouth * (of_part == 0)
        static = torch.stack((uv[:, 0], uv[:, 1], lips, inside, fold.clamp(0, 1), scalp, face, cloth, ears), 1)
        self.register_buffer("static", static)  # (V, 9)
        creases = torch.zeros(len(AU_NAMES), len(CREASES))
        for column, shares in enumerate(CREASES.values()):
            for name, share in shares.items():
                creases[AU_NAMES.index(name), column] = share / MAX_INTENSITY
        self.register_buffer("crease_shares", creases)
        for side in ("eye_left", "eye_right", "hair"):
            index = torch.unique(triangles[part == head.parts.index(side)])
            self.register_buffer(f"{side}_vertices", index)

    @property
    def device(self) -> torch.device:
        return self.head.mean.device

    @torch.no_grad()
    def forward(self, subjects: Subjects, au: Tensor, views: Views, size: int) -> tuple[Tensor, Tensor]:
        """Render a batch.

        Args:
            subjects, views: of length B. au: (B, 17) in [0, 5]. size: image edge in pixels.

        Returns:
            image (B, 3, S, S) sRGB in [0, 1]; mask (B, S, S) bool, where the face (no hair, neck, ears) is.
        """
        vertices = self.grow_hair(self.head(subjects.identity, au), subjects)
        pose = rotation(views.yaw, views.pitch, views.roll)
        world = vertices @ pose.mT  # (B, V, 3)
        fine = size * self.supersample
        points = self.project(world, views, fine)
        pixel, triangle, weights = rasterize(points, self.head.triangles, fine)
        color, face = self.shade(pixel, triangle, weights, vertices, world, pose, subjects, au, views, fine)
        backdrop = F.interpolate(views.background, size=(fine, fine), mode="bicubic", align_corners=True)
        image = backdrop.clamp(0, 1).permute(0, 2, 3, 1).reshape(-1, 3)  # (B,3,H,W) -> (B*H*W, 3)
        image = image.index_copy(0, pixel, color)
        mask = torch.zeros(len(image), dtype=image.dtype, device=image.device).index_copy(0, pixel, face)
        image = image.view(-1, fine, fine, 3).permute(0, 3, 1, 2)
        return F.avg_pool2d(image, self.supersample), F.avg_pool2d(mask.view(-1, fine, fine), self.supersample) > 0.5

    def project(self, world: Tensor, views: Views, size: int) -> Tensor:
        """Perspective: (B, V, 3) metres -> x right, y down in pixels, distance in metres."""
        distance = CAMERA_DISTANCE - world[..., 2]
        focal = (size * views.zoom / FIELD * CAMERA_DISTANCE)[:, None]
        x = focal * world[..., 0] / distance + (0.5 + views.shift[:, :1]) * size
        y = -focal * (world[..., 1] - CENTRE_HEIGHT) / distance + (0.5 + views.shift[:, 1:]) * size
        return torch.stack((x, y, distance), -1)

    def grow_hair(self, vertices: Tensor, subjects: Subjects) -> Tensor:
        """Lift the scalp by the hair's volume and cut the long-hair volume at its length (or fold it away)."""
        # hairline shift in metres -> units of the scalp coordinate (8 cm)
        grown = smoothstep(self.scalp - subjects.hairline[:, None] / 0.08, 0.47, 0.72)  # (B, V)
        normal = F.normalize(self.head.mean - self.head.mean.new_tensor([0.0, 0.03, -0.01]), dim=-1)
        vertices = vertices + (grown * subjects.hair_volume[:, None])[..., None] * normal
        hair = self.hair_vertices
        strand = vertices[:, hair]
        below = (subjects.hair_length[:, None] - strand[..., 1]).clamp(min=0)
        inward = 1 - 0.5 * (below / 0.06).clamp(max=1)  # what is cut folds up and hides inside
        strand = torch.stack((strand[..., 0] * inward, strand[..., 1] + below, strand[..., 2] * inward), -1)
        bald = (subjects.hair_length > 0.5)[:, None, None]
        return vertices.index_copy(1, hair, torch.where(bald, vertices[:, :1], strand))

    def shade(self, pixel, triangle, weights, vertices, world, pose, subjects, au, views, size):
        """Colour (M, 3) sRGB and face membership (M,) of the visible pixels."""
        head = self.head
        count = len(head.triangles)
        image = triangle // count  # (M,) which of the batch
        triangle = triangle % count
        corners = head.triangles.index_select(0, triangle)  # (M, 3)
        part = head.part.index_select(0, triangle)
        normals = vertex_normals(world, head.triangles)
        moving = torch.cat((normals, world), -1).flatten(0, 1)  # (B*V, 6)
        flat = corners + (image * world.shape[1])[:, None]
        n, position = blend(moving, flat, weights).split(3, -1)
        n = F.normalize(n, dim=-1)
        u, v, lips, mouth, fold, scalp, face, cloth, ears = blend(self.static, corners, weights).unbind(-1)
        cloth = smoothstep(cloth, 0.151, 0.154)
        maps = self.maps_at(u, v, size)
        deep = (au @ self.crease_shares).clamp(0, 1) * subjects.creases[:, None]  # (B, n creases)
        person = per_pixel(
            image,
            skin=linear(subjects.skin), lips=linear(subjects.lips), hair=linear(subjects.hair), brow=linear(subjects.brow),
            shirt=linear(subjects.shirt), hairline=subjects.hairline / 0.08, brow_amount=subjects.brow_amount,
            beard=subjects.beard, freckles=subjects.freckles, blush=subjects.blush, eyeshadow=subjects.eyeshadow,
            shine=subjects.shine, deep=deep, light=views.light, light_color=views.light_color, ambient=views.ambient,
        )  # fmt: skip

        # ---- skin, from the bottom layer up; colours are linear from here on
        albedo = person["skin"] * (0.80 + 0.40 * maps["mottle"])[:, None]

        def paint(color: Tensor, amount: Tensor) -> None:
            nonlocal albedo
            albedo = torch.lerp(albedo, color, amount.clamp(0, 1)[:, None])

        paint(albedo * albedo.new_tensor([1.05, 0.62, 0.58]), 0.55 * person["blush"] * maps["blush"] + 0.35 * ears)
        paint(albedo * albedo.new_tensor([0.62, 0.45, 0.34]), 0.8 * person["freckles"] * maps["freckles"])
        paint(albedo * albedo.new_tensor([0.55, 0.45, 0.55]), 0.9 * person["eyeshadow"] * maps["eyeshadow"])
        hair = person["hair"]
        stubble = person["beard"] * maps["beard"] * (0.55 + 0.9 * (maps["strands"] - 0.5))
        paint(hair * 0.8, 1.1 * stubble)
        paint(person["lips"], 0.85 * smoothstep(lips, 0.25, 0.75))
        brow = smoothstep(maps["brow"] + 0.4 * (person["brow_amount"] - 0.7), 0.25, 0.75)
        paint(person["brow"], brow * (0.45 + 0.5 * person["brow_amount"]))
        crease = (person["deep"] * torch.stack([maps[name] for name in CREASES], -1)).sum(-1).clamp(0, 1)
        albedo = albedo * (1 - crease[:, None] * albedo.new_tensor([0.50, 0.58, 0.60]))
        albedo = torch.lerp(albedo, albedo.new_tensor([0.10, 0.025, 0.025]).expand_as(albedo), mouth[:, None])
        grown = smoothstep(scalp - person["hairline"] + 0.10 * (maps["strands"] - 0.5), 0.485, 0.53)
        is_hair = torch.where(part == head.parts.index("hair"), torch.ones_like(grown), grown * (part == 0))
        fibre = (0.45 + 1.1 * maps["strands"])[:, None] * hair
        albedo = torch.lerp(albedo, fibre, is_hair[:, None])
        albedo = torch.lerp(albedo, person["shirt"], (cloth * (part == 0))[:, None])

        # ---- the other parts
        tooth = (part == head.parts.index("upper_teeth")) | (part == head.parts.index("lower_teeth"))
        albedo = torch.where(tooth[:, None], albedo.new_tensor([0.72, 0.68, 0.58]), albedo)
        albedo = torch.where(
            (part == head.parts.index("tongue"))[:, None], albedo.new_tensor([0.42, 0.13, 0.12]), albedo
        )
        albedo = torch.where(
            (part == head.parts.index("lashes"))[:, None], albedo.new_tensor([0.012, 0.010, 0.010]), albedo
        )
        eye = (part == 1) | (part == 2)
        albedo, eye_highlight = self.paint_eyes(
            albedo, eye, part, image, position, vertices, world, pose, subjects, views
        )

        # ---- light: wrapped diffuse (redder in the shade, as skin is), sky and ground ambient, two highlights
        light = person["light"]
        facing = (n * light).sum(-1, keepdim=True)
        wrap = torch.where(is_hair[:, None] > 0.5, n.new_tensor([0.1, 0.1, 0.1]), n.new_tensor([0.36, 0.22, 0.18]))
        diffuse = ((facing + wrap) / (1 + wrap)).clamp(min=0)
        occlusion = (1 - 0.55 * fold) * (1 - 0.35 * mouth)
        occlusion = torch.where(tooth | (part == head.parts.index("tongue")), 0.72 * (1 - 0.85 * fold), occlusion)
        sky = 0.75 + 0.25 * n[:, 1:2]
        radiance = diffuse * person["light_color"] + person["ambient"] * sky
        color = albedo * radiance * occlusion[:, None]
        toward = F.normalize(position.new_tensor([0.0, 0.0, CAMERA_DISTANCE]) - position, dim=-1)
        half = F.normalize(light + toward, dim=-1)
        glint = (n * half).sum(-1).clamp(min=0)
        fresnel = 0.04 + 0.96 * (1 - (n * toward).sum(-1).clamp(0, 1)) ** 5
        gloss = torch.where(lips > 0.5, 0.20, 0.10) * person["shine"] * (1 - is_hair) * (1 - cloth) * (1 - mouth)
        gloss = torch.where(part == head.parts.index("lashes"), torch.zeros_like(gloss), gloss)
        specular = gloss * glint**18 + 0.25 * gloss * fresnel + 0.22 * is_hair * glint**12 * maps["strands"]
        specular = (
            specular * occlusion
            + torch.where(tooth, 0.2 * glint**30, torch.zeros_like(glint))
            + eye_highlight * (glint > 0).to(glint)
        )
        color = color + specular[:, None] * person["light_color"]
        in_face = torch.where(part == 0, (face > 0.5) & (is_hair < 0.5), part != head.parts.index("hair"))
        color = color / (1 + 0.18 * color) * 1.10  # a soft shoulder instead of burnt highlights
        return color.clamp(1e-6, 1.0) ** (1 / GAMMA), in_face.to(color.dtype)

    def maps_at(self, u: Tensor, v: Tensor, size: int) -> dict[str, Tensor]:
        """The painted maps at map coordinates (M,), averaged first to about the pixel's footprint."""
        level = self.head.maps[None]
        footprint = level.shape[-1] / (1.3 * size)  # texels per (sub)pixel
        if footprint >= 1.5:
            level = F.avg_pool2d(level, round(footprint))
        values = F.grid_sample(level, torch.stack((u, v), -1)[None, None], align_corners=False, padding_mode="border")
        return dict(zip(self.head.map_names, values[0, :, 0], strict=True))

    def paint_eyes(self, albedo, eye, part, image, position, vertices, world, pose, subjects, views):
        """Sclera, iris, pupil and a catch light, by the angle between a point of the eyeball and the gaze."""
        row = eye.nonzero().squeeze(1)
        highlight = torch.zeros_like(albedo[:, 0])
        if not len(row):
            return albedo, highlight
        centres = torch.stack(
            [world[:, i].mean(1) for i in (self.eye_left_vertices, self.eye_right_vertices)], 1
        )  # (B, 2, 3)
        who, side = image[row], part[row] - 1
        direction = F.normalize(position[row] - centres[who, side], dim=-1)
        left, up = views.gaze.deg2rad().unbind(-1)
        gaze = torch.stack((left.sin() * up.cos(), up.sin(), left.cos() * up.cos()), -1)  # (B, 3)
        gaze = (pose @ gaze[..., None])[..., 0][who]
        angle = torch.acos((direction * gaze).sum(-1).clamp(-1 + 1e-6, 1 - 1e-6))  # radians from the gaze
        iris = linear(subjects.iris)[who]
        rays = 0.85 + 0.15 * torch.sin(40.0 * torch.atan2(direction[:, 1] - gaze[:, 1], direction[:, 0] - gaze[:, 0]))
        iris = (
            iris
            * (0.55 + 0.9 * smoothstep(angle, 0.14, 0.36) * (1 - 0.6 * smoothstep(angle, 0.34, 0.42)))[:, None]
            * rays[:, None]
        )
        sclera = albedo.new_tensor([0.78, 0.72, 0.70]) * (1.05 - 0.45 * smoothstep(direction[:, 1], 0.05, 0.5))[:, None]
        color = torch.lerp(iris, sclera, smoothstep(angle, 0.39, 0.46)[:, None])
        color = color * (0.04 + 0.96 * smoothstep(angle, 0.12, 0.18))[:, None]
        half = F.normalize(views.light[who] + direction.new_tensor([0.0, 0.0, 1.0]), dim=-1)
        highlight = highlight.index_copy(0, row, 0.8 * smoothstep((direction * half).sum(-1), 0.990, 0.997))
        return albedo.index_copy(0, row, color), highlight


def load_renderer(device: str | torch.device = "cpu") -> Renderer:
    """The shipped head behind a renderer, on a device."""
    return Renderer(HeadModel()).eval().to(device)
