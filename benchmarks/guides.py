"""What can tell a generator the expression of b, and generators that are told it; for `guidance.py`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from baselines import RULES, BaselineConfig, Painter, classes, like_ours
from torch import Tensor, nn

from expr_lib import model
from expr_lib.datasets import to_uint8
from expr_lib.faces.head import HeadModel
from expr_lib.faces.render import Renderer
from expr_lib.faces.sample import PROTOTYPES
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.model import AURelated, ModelConfig, MovingDG
from expr_lib.moving import AtRest, Mover

N_POINTS = 68

# ------------------------------------------------------------------------------------ what is known about an image


class Facts:
    """The AUs and landmarks of rendered images, found again by their pixels (uint8), also mirrored."""

    def __init__(self, head: HeadModel) -> None:
        self.head, self.known = head, dict[bytes, tuple[Tensor, Tensor]]()
        self.left, self.right = symmetric_points(head)

    def points(self, identity: Tensor, au: Tensor) -> Tensor:
        """Landmarks (B, 2, 34, 2) in decimetres, frontal: the left side, then the right side with mirrored x."""
        vertices = 10 * self.head(identity, au)[..., :2]  # (B, V, 2)
        return torch.stack([vertices[:, self.left], vertices[:, self.right] * vertices.new_tensor([-1.0, 1.0])], 1)

    def add(self, image: Tensor, identity: Tensor, au: Tensor) -> None:
        """Images (B, 3, S, S) uint8 with the identity (B, K) and AUs (B, n) that they were rendered with."""
        points = torch.stack([self.points(identity, au), self.points(identity, torch.zeros_like(au))], 1)
        for pixels, mirrored, intensities, place in zip(
            keys(image), keys(image.flip(-1)), au.cpu(), points, strict=True
        ):
            self.known[pixels] = intensities, place
            self.known[mirrored] = intensities, place.flip(1)  # the sides exchange their places

    def of(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, S, S) in [-1, 1] -> AUs (B, n), landmarks as shown and at rest (B, 2, 2, 34, 2).

        Both are 0 for an image that was not rendered, such as the sample pictures of a run that swap twice.
        """
        nothing = torch.zeros(len(AU_NAMES)), torch.zeros(2, 2, N_POINTS // 2, 2)
        found = [self.known.get(key, nothing) for key in keys(to_uint8(image))]
        au, points = (torch.stack(x).to(image.device) for x in zip(*found, strict=True))
        return au, points


def keys(image: Tensor) -> list[bytes]:
    return [blake2b(x.contiguous().cpu().numpy().tobytes(), digest_size=16).digest() for x in image]


def symmetric_points(head: HeadModel) -> tuple[Tensor, Tensor]:
    """34 vertices of the left half of the face, two for each AU, and their mirror images on the right: (34,) each.

    The first is the vertex that the AU moves most. The second is, among those that it moves at least half as far, the
    one farthest away from the first.
    """
    motion = head.shapes.sum(1).unflatten(-1, (-1, 3)).norm(dim=-1)  # (17, V) metres
    mean, chosen = head.mean, []
    motion = motion * ((mean[:, 0] > 0.001) & (mean[:, 2] > 0.03))
    for moved in motion:
        first = moved.argmax()
        distance = (mean - mean[first]).norm(dim=1) * (moved >= moved[first] / 2)
        chosen += [first, distance.argmax()]
    left = torch.stack(chosen)
    return left, torch.cdist(mean[left] * mean.new_tensor([-1.0, 1.0, 1.0]), mean).argmin(1)


class Remembered:
    """A renderer that adds all that it renders to `facts`."""

    def __init__(self, renderer: Renderer, facts: Facts) -> None:
        self.renderer, self.facts, self.device = renderer, facts, renderer.device

    def __call__(self, subjects: Any, au: Tensor, views: Any, size: int) -> tuple[Tensor, Tensor]:
        image, mask = self.renderer(subjects, au, views, size)  # (B, 3, S, S) in [0, 1], (B, S, S)
        self.facts.add((image * 255).round().to(torch.uint8), subjects.identity, au)
        return image, mask


EMOTIONS = {"joy": (0, 1), "sadness": (2, 3), "surprise": (4,), "fear": (5,), "anger": (6, 7), "disgust": (8, 9),
            "contempt": (10,)}  # fmt: skip
"""Rows of `PROTOTYPES`; the eighth class is neutral."""


def expression_class(au: Tensor) -> Tensor:
    """AUs (B, n) -> one-hot class (B, 8): the emotion whose prototype is nearest by cosine; neutral below 0.5."""
    rows = [PROTOTYPES[k] for group in EMOTIONS.values() for k in group]
    shapes = torch.tensor([[row.get(name, 0.0) for name in AU_NAMES] for row in rows], device=au.device)
    cosine = F.normalize(au, dim=1) @ F.normalize(shapes, dim=1).T  # (B, 11)
    by_class = torch.stack([x.amax(1) for x in cosine.split([len(g) for g in EMOTIONS.values()], 1)], 1)  # (B, 7)
    best = torch.where(by_class.amax(1) < 0.5, by_class.shape[1], by_class.argmax(1))
    return F.one_hot(best, by_class.shape[1] + 1).float()


# ------------------------------------------------------------------------------------------------- guided generators


class Guide(NamedTuple):
    """What tells the generator the expression."""

    tell: Callable[[nn.Module, Tensor, Any], Tensor]  # AU branch, f_r, facts of the image -> (B, n, d) or (B, numbers)
    numbers: int = 0  # if above 0, a linear layer learns to map them to n x d numbers
    facts: bool = False  # must the image be a known one?
    learned: bool = False  # does the AU branch go on learning, from the pixels too? If not, it is frozen


def each(au: Tensor, d: int) -> Tensor:
    """AU intensities (B, n) in [0, 5] -> (B, n, d): each number, as a share of the scale, d times."""
    return (au / MAX_INTENSITY)[..., None].expand(-1, -1, d)


def predicted(wrong: float = 0.0) -> Guide:
    """The AUs that the branch reads, each replaced by that of another image with probability `wrong`."""

    def tell(branch: nn.Module, f_r: Tensor, _: Any) -> Tensor:
        au = MAX_INTENSITY * branch.au(f_r).sigmoid()  # (B, n)
        if wrong:
            row = torch.arange(len(au), device=au.device)[:, None] + torch.randint_like(au, 1, len(au)).long()
            au = torch.where(torch.rand_like(au) < wrong, au.gather(0, row % len(au)), au)
        return each(au, f_r.shape[2])

    return Guide(tell)


GUIDES = {
    "f_r": Guide(lambda branch, f_r, _: f_r),
    "f_r, learned": Guide(lambda branch, f_r, _: f_r, learned=True),
    "predicted AUs": predicted(),
    "predicted AUs, 10 % wrong": predicted(0.1),
    "predicted AUs, 30 % wrong": predicted(0.3),
    "true AUs": Guide(lambda branch, f_r, known: each(known[0], f_r.shape[2]), facts=True),
    "landmarks": Guide(lambda branch, f_r, known: known[1][:, 0].flatten(1), 2 * N_POINTS, True),
    "landmark motion": Guide(
        lambda branch, f_r, known: 10 * (known[1][:, 0] - known[1][:, 1]).flatten(1), 2 * N_POINTS, True
    ),
    "class": Guide(lambda branch, f_r, known: expression_class(known[0]), len(EMOTIONS) + 1, True),
}


def guided(base: type[model.DG] | type[MovingDG], name: str, facts: Facts | None) -> type:
    """`DG` or `MovingDG` with a frozen encoder, told the expression by a guide instead of by f_r."""
    guide, drawn = GUIDES[name], base is model.DG  # not asked later, when `model.DG` may be this class

    class Guided(base):  # type: ignore[misc, valid-type]
        def __init__(self, c: ModelConfig) -> None:
            super().__init__(c)
            self.related.requires_grad_(guide.learned)
            self.shape = (c.n_aus, c.d)
            if not drawn:
                half = replace(c, width=c.width // 2)  # movers of half the width train three times as fast
                self.take, self.put = Mover(half, c.width + 4), Mover(half, c.c_f)
            self.linear = nn.Linear(guide.numbers, c.n_aus * c.d) if guide.numbers else None

        def disentangle(self, features: Tensor, image: Tensor) -> tuple[Any, Tensor]:
            features = features.detach()
            told = guide.tell(self.related, self.related(features), facts.of(image) if guide.facts and facts else None)
            if self.linear is not None:
                told = self.linear(told).unflatten(1, self.shape)
            if drawn:
                return self.free(features), told
            return AtRest(self.take(image, features, told.detach()), self.free(features)), told

    return Guided


def editing(name: str) -> type:
    """The generator of `GANimation` or `StarGAN` in place of `MovingDG`: f_f is the image itself, f_r the AUs read."""

    class Editing(nn.Module):
        def __init__(self, c: ModelConfig) -> None:
            super().__init__()
            self.related = AURelated(c).requires_grad_(False)
            self.editor = like_ours(name, BaselineConfig(size=c.size, n_aus=c.n_aus))
            n_asked = c.n_aus * (self.editor.levels if RULES[name].ask is classes else 1)
            self.put = Painter(self.editor, n_asked, RULES[name].masked)  # updated by Muon, like the `put` of a mover
            self.c_f = c.c_f

        def disentangle(self, features: Tensor, image: Tensor) -> tuple[AtRest, Tensor]:
            f_r = self.related(features.detach())
            no_map = image.new_zeros(len(image), self.c_f, 16, 16)
            return AtRest(image, no_map), predicted().tell(self.related, f_r, None)

        def generate(self, f_f: AtRest, f_r: Tensor) -> Tensor:
            image = self.put(f_f.face, RULES[name].ask(MAX_INTENSITY * f_r[..., 0], self.editor))[0]
            return image if self.training else image.clamp(-1, 1)

    return Editing


@contextmanager
def built_of(**parts: type) -> Iterator[None]:
    """In this context, networks are built of these classes instead of those of `model` with the same names."""
    before = {name: getattr(model, name) for name in parts}
    vars(model).update(parts)
    try:
        yield
    finally:
        vars(model).update(before)
