"""A batched z-buffer renderer in plain PyTorch, with the same code on CPU, CUDA and MPS.

`rasterize` finds the visible triangle of each (sub)pixel, `Renderer.shade` colours these pixels, and averaging the
subpixels smooths the edges. No Python loop runs over images. Our choice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expr_lib.faces.head import HeadModel
from expr_lib.faces.parameters import Subjects, Views
from expr_lib.facs import AU_NAMES, MAX_INTENSITY

CAMERA_DISTANCE = 1.1  # metres from the middle of the head
FIELD = 0.218  # metres that the image spans at that distance, at zoom 1
CENTRE_HEIGHT = 0.010  # metres; the image is centred a little below the eyes
GAMMA = 2.2

CREASES = {  # map of wrinkles -> action units that deepen it, and their shares
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
    """Find the visible triangle of each pixel.

    Triangles are divided into classes by the size of their bounding box. Within a class every triangle has the same
    number of candidate pixels, so that each class is one batched test. The nearest candidate is visible (`amin`).

    Args:
        points: (B, V, 3) x right, y down in pixels, and distance from the camera (any unit, positive).
        triangles: (F, 3), counter-clockwise as seen from the camera; the others are culled.
        size: pixels along an edge.

    Returns:
        pixel (M,) flat index into (B, size, size), triangle (M,) flat index into (B, F), weights (3, M) barycentric.
    """
    batch, device, count = len(points), points.device, len(triangles)
    # channels first throughout: (3 corners, n triangles) broadcasts along the long axis
    x, y, z = points.permute(2, 0, 1).index_select(2, triangles.T.flatten()).unflatten(2, (3, count))  # (B, 3, F) each
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])  # (B, F)
    left, top = (x.amin(1) - 0.5).ceil().clamp(min=0), (y.amin(1) - 0.5).ceil().clamp(min=0)
    right, bottom = (x.amax(1) - 0.5).floor().clamp(max=size - 1), (y.amax(1) - 0.5).floor().clamp(max=size - 1)
    extent = torch.maximum(right - left, bottom - top) + 1.0
    visible = (area < 0) & (right >= left) & (bottom >= top)  # y points down: counter-clockwise has negative area
    chosen = visible.flatten().nonzero().squeeze(1)  # (n,) flat (B, F)
    x, y, z = (t.transpose(0, 1).flatten(1).index_select(1, chosen) for t in (x, y, z))  # (3, n)
    area, left, top, extent = (t.flatten().index_select(0, chosen) for t in (area, left, top, extent))
    # barycentric weights are affine in the pixel: w_k = a_k * ox + b_k * oy + c_k, counted from the box's corner
    nx, ny, px, py = x.roll(-1, 0), y.roll(-1, 0), x.roll(-2, 0), y.roll(-2, 0)
    a, b = (ny - py) / area, (px - nx) / area
    c = (nx * py - px * ny) / area + a * (left + 0.5) + b * (top + 0.5)
    za, zb, zc = (a * z).sum(0), (b * z).sum(0), (c * z).sum(0)
    corner = chosen // count * (size * size) + (top * size + left).long()

    found = [(chosen[:0], chosen[:0], chosen[:0])]  # of each hit: the triangle, its pixel from the box's corner
    edge, previous = 1, 0
    while previous < size:
        rows = ((extent > previous) & (extent <= edge)).nonzero().squeeze(1)
        offset = torch.arange(edge, device=device)
        ox, oy = offset.repeat(edge), offset.repeat_interleave(edge)  # (edge * edge,)
        fx, fy = ox.to(x)[:, None], oy.to(x)[:, None]
        for row in rows.split(max(1, (1 << 22) // edge**2)) if len(rows) else ():  # bounds the memory
            inside = (left.index_select(0, row) + fx < size) & (top.index_select(0, row) + fy < size)
            ak, bk, ck = (t.index_select(1, row) for t in (a, b, c))  # (3, n')
            for corner_k in range(3):
                weight = torch.addcmul(torch.addcmul(ck[corner_k], bk[corner_k], fy), ak[corner_k], fx)
                inside &= weight >= 0  # (edge * edge, n')
            k, r = inside.nonzero(as_tuple=True)
            found.append((row[r], ox[k], oy[k]))
        previous, edge = edge, edge + 1 if edge < 4 else edge * 3 // 2
    source, ox, oy = (torch.cat(t) for t in zip(*found, strict=True))
    depth = za[source] * ox + zb[source] * oy + zc[source]
    pixel = corner[source] + oy * size + ox
    nearest = depth.new_full((batch * size * size,), math.inf).scatter_reduce(0, pixel, depth, "amin")
    winner = (depth <= nearest[pixel]).nonzero().squeeze(1)
    # of two triangles at the same depth on a shared edge, the later one is visible, on every device
    best = torch.full((batch * size * size,), -1, device=device).scatter_reduce(0, pixel[winner], winner, "amax")
    pixel = (best >= 0).nonzero().squeeze(1)
    best = best[pixel]
    source = source[best]
    ox, oy = ox[best], oy[best]
    weights = a.index_select(1, source) * ox + b.index_select(1, source) * oy + c.index_select(1, source)
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


def unit(vectors: Tensor) -> Tensor:
    """Normalize vectors (3, M); F.normalize is many times slower along a first axis of three."""
    return vectors * vectors.square().sum(0).clamp(min=1e-24).rsqrt()


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def blend(attributes: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """(C, M): attributes (C, rows) at three corners (3, M), mixed by barycentric weights (3, M)."""
    mixed = attributes.index_select(1, corners[0]) * weights[0]
    for k in (1, 2):
        mixed = torch.addcmul(mixed, attributes.index_select(1, corners[k]), weights[k])
    return mixed


def per_pixel(image: Tensor, **values: Tensor) -> dict[str, Tensor]:
    """Values of each image, (B,) or (B, C) -> values of each pixel, (M,) or (C, M), in one gather operation."""
    table = torch.cat([value.view(len(value), -1).T for value in values.values()])  # (sum of C, B)
    rows = table.index_select(1, image).split([value[0].numel() for value in values.values()])
    return {name: row[0] if v.ndim == 1 else row for (name, v), row in zip(values.items(), rows, strict=True)}


def rgb(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A linear colour (3, 1) that broadcasts over pixels (3, M)."""
    return like.new_tensor([[red], [green], [blue]])


def linear(srgb: Tensor) -> Tensor:
    return srgb.clamp(0.0, 1.0) ** GAMMA


class Renderer(nn.Module):
    """`renderer(subjects, au, views, size) -> image (B, 3, S, S) in [0, 1], face mask (B, S, S) bool`."""

    head: HeadModel
    scalp: Tensor
    static: Tensor
    crease_shares: Tensor
    eye_left_vertices: Tensor
    eye_right_vertices: Tensor
    hair_vertices: Tensor

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
        # 0.5 on the hairline, one unit is 8 cm; outside the map, everything above the nape is scalp
        scalp = at_vertex[:, names.index("hairline")]
        back = ((mean[:, 1] + 0.05) / 0.08 + 0.5).clamp(0, 1)
        scalp = torch.where(uv[:, 0].abs() > 0.98, back, scalp) * (1 - ears)
        scalp[of_part != 0] = 0.0
        x, y, z = mean.unbind(1)
        face = smoothstep(z, 0.0, 0.02) * smoothstep(y, -0.092, -0.082) * (1 - ears)
        cloth = 0.30 * x.abs() - y  # metres; the shirt begins at 0.152, lower at the front than on the shoulders
        self.register_buffer("scalp", scalp)
        inside = mouth * (of_part == 0)
        static = torch.stack((uv[:, 0], uv[:, 1], lips, inside, fold.clamp(0, 1), scalp, face, cloth, ears))
        self.register_buffer("static", static)  # (9, V)
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
        color, face = self.shade(triangle, weights, world, pose, subjects, au, views, fine)  # (3, M), (M,)
        backdrop = F.interpolate(views.background, size=(fine, fine), mode="bicubic", align_corners=True).clamp(0, 1)
        image = backdrop.transpose(0, 1).flatten(1).index_copy(1, pixel, color)  # (3, B*H*W)
        mask = torch.zeros_like(image[0]).index_copy(0, pixel, face)  # (B*H*W,)
        image = image.view(3, -1, fine, fine).transpose(0, 1)  # (B, 3, H, W)
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
        inward = 1 - 0.5 * (below / 0.06).clamp(max=1)  # the rest is folded up inside the head
        strand = torch.stack((strand[..., 0] * inward, strand[..., 1] + below, strand[..., 2] * inward), -1)
        bald = (subjects.hair_length > 0.5)[:, None, None]
        return vertices.index_copy(1, hair, torch.where(bald, vertices[:, :1], strand))

    def shade(self, triangle, weights, world, pose, subjects, au, views, size):
        """Colour (3, M) sRGB and face membership (M,) of the visible pixels."""
        head, parts = self.head, self.head.parts
        image, triangle = triangle // len(head.triangles), triangle % len(head.triangles)  # (M,)
        corners = head.triangles.T.index_select(1, triangle)  # (3, M)
        part = head.part.index_select(0, triangle)
        moving = torch.cat((vertex_normals(world, head.triangles), world), -1).permute(2, 0, 1).flatten(1)  # (6, B*V)
        n, position = blend(moving, corners + image * world.shape[1], weights).split(3)  # (3, M)
        n = unit(n)
        u, v, lips, mouth, fold, scalp, face, cloth, ears = blend(self.static, corners, weights)  # (M,) each
        maps = self.maps_at(u, v, size)
        person = per_pixel(
            image,
            skin=linear(subjects.skin), lips=linear(subjects.lips), hair=linear(subjects.hair),
            brow=linear(subjects.brow), shirt=linear(subjects.shirt), brow_amount=subjects.brow_amount,
            hairline=subjects.hairline / 0.08, beard=subjects.beard, freckles=subjects.freckles, blush=subjects.blush,
            eyeshadow=subjects.eyeshadow, shine=subjects.shine,
            deep=(au @ self.crease_shares).clamp(0, 1) * subjects.creases[:, None],
            light=views.light, light_color=views.light_color, ambient=views.ambient,
        )  # fmt: skip
        of_skin = (part == parts.index("skin")).to(n)
        tooth = (part == parts.index("upper_teeth")) | (part == parts.index("lower_teeth"))
        tongue, lash = part == parts.index("tongue"), part == parts.index("lashes")
        grown = smoothstep(scalp - person["hairline"] + 0.10 * (maps["strands"] - 0.5), 0.485, 0.53)
        is_hair = torch.where(part == parts.index("hair"), 1.0, grown * of_skin)
        cloth = smoothstep(cloth, 0.151, 0.154) * of_skin

        # ---- albedo, from the bottom layer up; colours are linear from here on
        albedo = person["skin"] * (0.80 + 0.40 * maps["mottle"])  # (3, M)
        blush = 0.55 * person["blush"] * maps["blush"] + 0.35 * ears
        albedo = torch.lerp(albedo, albedo * rgb(n, 1.05, 0.62, 0.58), blush.clamp(0, 1))
        albedo = torch.lerp(albedo, albedo * rgb(n, 0.62, 0.45, 0.34), 0.8 * person["freckles"] * maps["freckles"])
        albedo = torch.lerp(albedo, albedo * rgb(n, 0.55, 0.45, 0.55), 0.9 * person["eyeshadow"] * maps["eyeshadow"])
        stubble = 1.1 * person["beard"] * maps["beard"] * (0.10 + 0.9 * maps["strands"])
        albedo = torch.lerp(albedo, 0.8 * person["hair"], stubble.clamp(0, 1))
        albedo = torch.lerp(albedo, person["lips"], 0.85 * smoothstep(lips, 0.25, 0.75))
        brow = smoothstep(maps["brow"] + 0.4 * (person["brow_amount"] - 0.7), 0.25, 0.75)
        albedo = torch.lerp(albedo, person["brow"], brow * (0.45 + 0.5 * person["brow_amount"]))
        crease = (person["deep"] * torch.stack([maps[name] for name in CREASES])).sum(0).clamp(0, 1)
        albedo = albedo * (1 - crease * rgb(n, 0.50, 0.58, 0.60))
        albedo = torch.lerp(albedo, rgb(n, 0.10, 0.025, 0.025), mouth)
        albedo = torch.lerp(albedo, (0.45 + 1.1 * maps["strands"]) * person["hair"], is_hair)
        albedo = torch.lerp(albedo, person["shirt"], cloth)
        albedo = torch.where(tooth, rgb(n, 0.72, 0.68, 0.58), albedo)
        albedo = torch.where(tongue, rgb(n, 0.42, 0.13, 0.12), albedo)
        albedo = torch.where(lash, rgb(n, 0.012, 0.010, 0.010), albedo)
        albedo, catch_light = self.paint_eyes(albedo, part, image, position, world, pose, subjects, views)

        # ---- light: wrapped diffuse (redder in the shade, as skin is), sky and ground ambient, highlights
        light = person["light"]
        wrap = torch.where(is_hair > 0.5, 0.1, rgb(n, 0.36, 0.22, 0.18))
        diffuse = (((n * light).sum(0) + wrap) / (1 + wrap)).clamp(min=0)
        radiance = diffuse * person["light_color"] + person["ambient"] * (0.75 + 0.25 * n[1])
        occlusion = (1 - 0.55 * fold) * (1 - 0.35 * mouth)
        occlusion = torch.where(tooth | tongue, 0.72 * (1 - 0.85 * fold), occlusion)
        toward = unit(position.new_tensor([[0.0], [0.0], [CAMERA_DISTANCE]]) - position)
        glint = (n * unit(light + toward)).sum(0).clamp(min=0)
        fresnel = 0.04 + 0.96 * (1 - (n * toward).sum(0).clamp(0, 1)) ** 5
        gloss = torch.where(lips > 0.5, 0.20, 0.10) * person["shine"] * (1 - is_hair) * (1 - cloth) * (1 - mouth)
        gloss = torch.where(lash, 0.0, gloss)
        specular = gloss * (glint**18 + 0.25 * fresnel) + 0.22 * is_hair * glint**12 * maps["strands"]
        specular = specular * occlusion + torch.where(tooth, 0.2 * glint**30, 0.0) + catch_light * (glint > 0)
        color = albedo * radiance * occlusion + specular * person["light_color"]
        color = 1.22 * color / (1 + 0.25 * color)  # compress bright values instead of clipping them
        in_face = torch.where(of_skin > 0, (face > 0.5) & (is_hair < 0.5), part != parts.index("hair"))
        return color.clamp(1e-6, 1.0) ** (1 / GAMMA), in_face.to(color)

    def maps_at(self, u: Tensor, v: Tensor, size: int) -> dict[str, Tensor]:
        """The painted maps at coordinates (M,), first averaged to about the size of a pixel."""
        level = self.head.maps[None]
        footprint = level.shape[-1] / (1.3 * size)  # texels per (sub)pixel
        if footprint >= 1.5:
            level = F.avg_pool2d(level, round(footprint))
        values = F.grid_sample(level, torch.stack((u, v), -1)[None, None], align_corners=False, padding_mode="border")
        return dict(zip(self.head.map_names, values[0, :, 0], strict=True))

    def paint_eyes(self, albedo, part, image, position, world, pose, subjects, views):
        """Colour of sclera, iris and pupil, and a catch light, by the angle to the gaze."""
        left_eye = self.head.parts.index("eye_left")
        column = ((part == left_eye) | (part == left_eye + 1)).nonzero().squeeze(1)  # (m,)
        who, side = image[column], part[column] - left_eye
        eyes = (self.eye_left_vertices, self.eye_right_vertices)
        centres = torch.stack([world[:, vertices].mean(1) for vertices in eyes], 1)  # (B, 2, 3)
        left, up = views.gaze.deg2rad().unbind(-1)
        gaze = torch.stack((left.sin() * up.cos(), up.sin(), left.cos() * up.cos()), -1)  # (B, 3), in the head's frame
        gaze = (pose @ gaze[..., None])[who, :, 0].T  # (3, m)
        out = unit(position[:, column] - centres[who, side].T)  # (3, m) from the eye's centre
        angle = torch.acos((out * gaze).sum(0).clamp(-1 + 1e-6, 1 - 1e-6))  # radians from the gaze
        rays = 0.85 + 0.15 * torch.sin(40.0 * torch.atan2(out[1] - gaze[1], out[0] - gaze[0]))
        ring = 0.55 + 0.9 * smoothstep(angle, 0.14, 0.36) * (1 - 0.6 * smoothstep(angle, 0.34, 0.42))
        iris = linear(subjects.iris)[who].T * ring * rays
        sclera = rgb(albedo, 0.78, 0.72, 0.70) * (1.05 - 0.45 * smoothstep(out[1], 0.05, 0.5))
        color = torch.lerp(iris, sclera, smoothstep(angle, 0.39, 0.46)) * (0.04 + 0.96 * smoothstep(angle, 0.12, 0.18))
        half = unit(views.light[who].T + rgb(albedo, 0.0, 0.0, 1.0))
        catch_light = 0.8 * smoothstep((out * half).sum(0), 0.990, 0.997)
        return albedo.index_copy(1, column, color), torch.zeros_like(albedo[0]).index_copy(0, column, catch_light)


def load_renderer(device: str | torch.device = "cpu") -> Renderer:
    """A renderer with the head model of this package, on a device."""
    return Renderer(HeadModel()).eval().to(device)
