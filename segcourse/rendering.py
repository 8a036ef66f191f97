"""Draws the scenes of `toyscape`, a batch at a time, on any device.

`render` at the end of this file calls six stages, in the order in which they stand here:

1. `_sample`     every random decision of a scene, from one counter-based hash
2. `_stuff`      sky, ground, road and water as coverage planes, coloured by one matrix product
3. `_bin`        which 8x8 or 16x16 tiles each object touches (integers only)
4. `_shade`      colour and outline of each object inside its tiles, by signed distances
5. `_composite`  painter's algorithm, all tiles of one depth layer at once
6. `_camera`     light, blur, noise, eight bits

Whatever is computed for a scene is computed from its own numbers, element by element, so that it
does not matter what else is in the batch or how many threads share the work. Powers of tensors are
avoided for the same reason: torch computes the last few elements of a buffer in another way, and
for `**` the last bit can differ.

Lengths are in units of the image side unless a name ends in `px`; y points down.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

OBJECTS = 12  # places for objects in a scene; an instance number must fit in four bits
DRAWS = 288  # random numbers that a scene may use
# How much is worked on at once, so that the temporaries stay in a processor's cache:
_CHUNK = 1024  # (object, tile) pairs while shading
_CACHE_PX = 98_304  # pixels while painting


# ---------------------------------------------------------------------------------------------
# 1. Sample: all randomness of a scene
# ---------------------------------------------------------------------------------------------


def _scramble(x: Tensor) -> Tensor:
    """Mix the bits of int64 numbers one to one (the finaliser of MurmurHash3, Appleby 2011)."""
    for shift, factor in ((33, -0xAE502812AA7333), (33, -0x3B314601E57A13AD)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 33) & 0x7FFFFFFF)


def _uniforms(seed: int, split: int, indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B, count], a function of (seed, split, index) alone.

    The three numbers are packed into one 64-bit key without overlap and scrambled one to one, so
    two splits can never share a key.
    """
    key = _scramble((seed << 40) + (split << 38) + indices)
    counter = torch.arange(1, count + 1, device=indices.device) * 0x1E3779B97F4A7C15
    return (_scramble(key[:, None] + counter) >> 40 & 0xFFFFFF).float() / (1 << 24)


class _Draws:
    """Hands out the columns of a table of uniform numbers, each once."""

    def __init__(self, table: Tensor):
        self.table, self.used = table, 0

    def __call__(self, low: float = 0.0, high: float = 1.0, each: int | None = None) -> Tensor:
        """Numbers in [low, high): [B], or [B, each]."""
        first, self.used = self.used, self.used + (each or 1)
        if self.used > self.table.shape[1]:
            raise RuntimeError("DRAWS is too small for the numbers that a scene needs")
        numbers = low + (high - low) * self.table[:, first : self.used]
        return numbers if each else numbers[:, 0]


def _pick(choices: Tensor, u: Tensor) -> Tensor:
    """Rows of `choices` [N, ...] chosen by uniform numbers u."""
    return choices[(u * len(choices)).long()]


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV to RGB, each in 0..1; the result has one more dimension of 3."""
    k = torch.stack([(n + hue * 6) % 6 for n in (5, 3, 1)], -1)
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(k, 4 - k).clamp(0, 1))


# (zenith, horizon) of five skies, and (lush, dry) of five meadows, as RGB.
_SKIES = torch.tensor([
    [[0.22, 0.47, 0.86], [0.72, 0.86, 0.96]],
    [[0.36, 0.62, 0.90], [0.88, 0.93, 0.94]],
    [[0.24, 0.29, 0.58], [0.97, 0.70, 0.52]],
    [[0.45, 0.42, 0.70], [0.98, 0.80, 0.74]],
    [[0.45, 0.55, 0.64], [0.85, 0.88, 0.89]],
])  # fmt: skip
_MEADOWS = torch.tensor([
    [[0.22, 0.46, 0.13], [0.50, 0.64, 0.22]],
    [[0.30, 0.52, 0.16], [0.66, 0.70, 0.28]],
    [[0.44, 0.48, 0.16], [0.80, 0.70, 0.34]],
    [[0.16, 0.38, 0.20], [0.36, 0.56, 0.30]],
    [[0.56, 0.46, 0.20], [0.86, 0.74, 0.42]],
])  # fmt: skip

# Shapes, their class, how often they come, height (low, high), half width of the frame, share that
# floats in the air, and the hue around which their colours lie.
_SHAPES = ("round tree", "conifer", "car", "ball", "ring", "pole", "star")
_CLASS_OF = torch.tensor([4, 4, 5, 6, 7, 8, 9])
_SHARE = torch.tensor([0.10, 0.10, 0.20, 0.18, 0.17, 0.16, 0.09])
_HEIGHT = torch.tensor([(0.22, 0.50), (0.24, 0.54), (0.13, 0.28), (0.16, 0.52), (0.19, 0.56),
                        (0.32, 0.80), (0.17, 0.27)])  # fmt: skip
_HALF_WIDTH = torch.tensor([0.40, 0.36, 1.12, 0.62, 0.62, 0.24, 0.60])
_FLOATING = torch.tensor([0.0, 0.0, 0.0, 0.3, 0.6, 0.0, 0.7])
_HUE = torch.tensor([0.31, 0.37, 0.00, 0.07, 0.79, 0.60, 0.14])


@dataclass
class _Scenes:
    """What is in B scenes of `canvas` x `canvas` pixels. Rows and columns are in pixels."""

    ridge_px: Tensor  # [B, 1, W] height of the horizon in each column
    road_centre_px: Tensor  # [B, H, 1]
    road_half_px: Tensor  # [B, H, 1] half width of the road in each row
    dash_half_px: Tensor  # [B, H, 1] half width of the centre line, negative between dashes
    pond_x: Tensor  # [B, 1, W]; the pond is where pond_x + pond_y < 0
    pond_y: Tensor  # [B, H, 1]
    bank_px: Tensor  # [B, 1, 1] width of the dark shore
    fade: Tensor  # [B, H, 1] 0 at the zenith, 1 at the horizon, mirrored below it
    glow_x: Tensor  # [B, 1, W]; the sun's glow is glow_x * glow_y
    glow_y: Tensor  # [B, H, 1]
    haze: Tensor  # [B, H, 1]
    light_x: Tensor  # [B, 1, 1, W]; the light on the picture is light_x * light_y
    light_y: Tensor  # [B, 1, H, 1]
    stuff_colours: Tensor  # [B, 3, planes]
    windows: Tensor  # [B, 3] int64: where clouds, turf and sensor noise are cut from their atlas
    blur: Tensor  # [B, 1, 1, 1]
    noise: Tensor  # [B, 1, 1, 1]
    objects: "_Objects"

    def rows(self, first: int, end: int) -> "_Scenes":
        """The scenes first .. end - 1, without their objects."""
        names = (f.name for f in fields(self) if f.name != "objects")
        return replace(self, **{name: getattr(self, name)[first:end] for name in names})


@dataclass
class _Objects:
    """B x OBJECTS objects, the deepest first. An object's frame has its foot at (0, 0), its top at
    v = -1, and u to the right; `_HALF_WIDTH` bounds |u|."""

    shape: Tensor  # int64, number in _SHAPES
    present: Tensor  # bool
    foot_x: Tensor
    foot_y: Tensor
    height: Tensor
    lean: Tensor  # sine of the angle
    colour: Tensor  # [B, OBJECTS, 3], 0..255
    accent: Tensor  # [B, OBJECTS, 3], 0..255
    style: Tensor  # [B, OBJECTS, 4] numbers in 0..1 that a shape may use
    shadow: Tensor  # strength of the shadow at the foot
    sun: Tensor  # -1 (light from the left) to 1


def _column(numbers: Tensor) -> Tensor:
    """[B] -> [B, 1], to meet rows or columns of pixels [1, N]."""
    return numbers[:, None]


def _sample(
    seed: int, split: int, indices: Tensor, size: int, difficulty: float, star_size: float
) -> _Scenes:
    """Decide everything about the scenes `indices` [B]."""
    draw = _Draws(_uniforms(seed, split, indices, DRAWS))
    canvas = _canvas(size)
    x = y = (torch.arange(canvas, device=indices.device) + 0.5)[None] / size  # columns, rows

    horizon = draw(0.20, 0.44)
    roll, waves, phase = draw(0.0, 0.022, 2), draw(2, 11, 2), draw(0, 2 * math.pi, 2)
    hills = (roll[..., None] * torch.sin(waves[..., None] * x + phase[..., None])).sum(1)
    # On the ground: 0 at the horizon, 1 at the bottom edge.
    depth = ((y - _column(horizon)) / (1 - _column(horizon))).clamp(0)

    road_at = _sample_road(draw)
    road_centre, road_half = road_at(depth)
    # Dashes of equal length on the ground: even in 1 / depth.
    dash = ((_column(draw(0.5, 0.9)) / (depth + 0.05) + _column(draw())) % 1.0) < 0.55
    pond_x, pond_y = _sample_pond(draw, x, y, horizon, size)
    sun_x, fade, glow_x, glow_y, sky, meadow = _sample_sky(draw, x, y, horizon)
    white_balance = 255 * (1 + draw(-0.06, 0.06, 3))

    return _Scenes(
        stuff_colours=_sample_colours(draw, sky, meadow) * white_balance[:, :, None],
        windows=_sample_windows(draw, horizon, size),
        ridge_px=((_column(horizon) + hills) * size)[:, None, :],
        road_centre_px=(road_centre * size)[:, :, None],
        road_half_px=(road_half * size)[:, :, None] + 0.5,
        dash_half_px=torch.where(dash, road_half * size * 0.06, -1.0)[:, :, None] + 0.25,
        pond_x=pond_x[:, None, :],
        pond_y=pond_y[:, :, None],
        bank_px=(_column(draw(0.006, 0.022)) * size)[:, :, None],
        fade=fade[:, :, None],
        glow_x=glow_x[:, None, :],
        glow_y=glow_y[:, :, None],
        haze=((1 - depth).square().square() * _column(draw(0.15, 0.5)))[:, :, None],
        light_x=(1 + _column(draw(-0.16, 0.16)) * (2 * x - 1))[:, None, None, :],
        light_y=(1 + _column(draw(-0.10, 0.14)) * (2 * y - 1))[:, None, :, None],
        blur=draw(0.03, 0.17)[:, None, None, None],
        noise=(draw(1.5, 4.0) * (0.5 + 2.5 * difficulty))[:, None, None, None],
        objects=_sample_objects(
            draw, horizon, road_at, sun_x, white_balance, size, difficulty, star_size
        ),
    )


def _sample_road(draw: _Draws) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A road from a vanishing point to the bottom edge, as a function of the depth."""
    vanish, bottom, bend = draw(0.2, 0.8), draw(-0.1, 1.1), draw(-0.5, 0.5)
    half, exists = draw(0.12, 0.30), draw() < 0.78

    def road_at(depth: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and half width at depths [B, N]; the half width is negative without a road."""
        centre = _column(vanish) + _column(bottom - vanish) * depth
        centre = centre + _column(bend) * depth * (1 - depth)
        return centre, torch.where(_column(exists), _column(half) * depth + 0.004, -1.0)

    return road_at


def _sample_pond(
    draw: _Draws, x: Tensor, y: Tensor, horizon: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """A wavy oval, where a function of x plus a function of y is negative: [B, W] and [B, H].

    Near the shore the sum is about the distance to it, in pixels.
    """
    at, depth = draw(0, 1), draw(0.18, 0.75)
    a, b, exists = draw(0.24, 0.56), draw(0.08, 0.23), draw() < 0.70
    row = horizon + (1 - horizon) * depth
    wobble = 0.30 * torch.sin(_column(draw(8, 18)) * x + _column(draw(0, 6.3)))
    along_x = ((x - _column(at)) / _column(a)).square() + wobble - 1
    wobble = 0.25 * torch.sin(_column(draw(14, 26)) * y + _column(draw(0, 6.3)))
    along_y = ((y - _column(row)) / _column(b)).square() + wobble
    along_y = torch.where(_column(exists), along_y, 1e3)
    scale = _column((a * b).sqrt() / 2) * size
    return along_x * scale, along_y * scale


def _sample_sky(draw: _Draws, x: Tensor, y: Tensor, horizon: Tensor) -> tuple[Tensor, ...]:
    """Sun [B], fade [B, H], glow [B, W] and [B, H], colours of sky and meadow [B, 2, 3]."""
    sun_x, sun_y = draw(-0.1, 1.1), horizon * draw(0.1, 0.9)
    sky = _pick(_SKIES.to(x.device), draw()) * draw(0.85, 1.08)[:, None, None]
    meadow = _pick(_MEADOWS.to(x.device), draw()) * draw(0.8, 1.12)[:, None, None]
    above = (y - _column(horizon)).abs()  # mirrored below the horizon, for the water
    fade = torch.exp(1.7 * torch.log((1 - above / _column(horizon)).clamp(min=1e-6)))
    width = _column(draw(0.10, 0.30))
    glow_x = torch.exp(-((x - _column(sun_x)) / width).square())
    mirrored = _column(horizon) - above
    glow_y = torch.exp(-((mirrored - _column(sun_y)) / width).square())
    return sun_x, fade, glow_x, glow_y, sky, meadow


def _sample_colours(draw: _Draws, sky: Tensor, meadow: Tensor) -> Tensor:
    """What each plane of `_stuff` adds to the picture, in its order: [B, 3, planes]."""
    (zenith, low_sky), (lush, dry) = sky.unbind(1), meadow.unbind(1)

    def tinted(strength: Tensor, *rgb: float) -> Tensor:
        return _column(strength) * torch.tensor(rgb, device=sky.device)

    asphalt = tinted(draw(0.30, 0.50), 1.0, 0.98, 1.02)
    paint = torch.tensor([0.92, 0.90, 0.84], device=sky.device)
    glow = tinted(draw(0.05, 0.45), 1.0, 0.92, 0.70)
    cloud = _column(draw(0.15, 0.75)) * (1.0 - low_sky * 0.75)
    murk = tinted(draw(0.6, 1.6), -0.10, -0.05, 0.01)
    mud = lush * 0.42
    colours = [zenith, low_sky - zenith, cloud, glow, lush, dry - lush, low_sky - lush,
               asphalt, paint - asphalt, asphalt * 0.5, murk, mud - lush]  # fmt: skip
    return torch.stack(colours, 2)


def _sample_windows(draw: _Draws, horizon: Tensor, size: int) -> Tensor:
    """Where clouds, turf and sensor noise are cut from their atlases: [B, 3] int64."""
    canvas, margin = _canvas(size), _atlas_margin(size)
    horizon_row = (canvas - (horizon * size).round().long()) * (canvas + margin)
    clouds, turf = ((draw() * margin).long() for _ in range(2))
    noise = (draw() * _noise_margin(size)).long()
    return torch.stack([horizon_row + clouds, horizon_row + turf, noise], 1)


def _sample_objects(
    draw: _Draws,
    horizon: Tensor,
    road_at: Callable[[Tensor], tuple[Tensor, Tensor]],
    sun_x: Tensor,
    white_balance: Tensor,
    size: int,
    difficulty: float,
    star_size: float,
) -> _Objects:
    """Decide kind, place, size and colour of every object."""
    device = horizon.device
    k = OBJECTS
    depth = draw(0.04, 1.0, k).sort(1).values  # the nearer, the later it is painted
    count = draw(3, 10).long()
    present = draw(0, 1, k).argsort(dim=1, stable=True) < count[:, None]

    shape = torch.bucketize(draw(0, 1, k), _SHARE.cumsum(0)[:-1].to(device))
    low, high = _HEIGHT.to(device)[shape].unbind(2)
    low = low * (1.15 - 0.6 * difficulty)
    height = low * torch.exp(draw(0, 1, k) * torch.log(high / low))  # log-uniform
    height = height * (0.34 + 0.66 * depth)
    height = torch.where(shape == 6, star_size * height, height)
    floats = draw(0, 1, k) < _FLOATING.to(device)[shape]

    ground = horizon[:, None] + (1.06 - horizon[:, None]) * depth
    air = height + (0.98 - height) * draw(0, 1, k)
    road_centre, road_half = road_at(depth)
    lane = road_centre + draw(-0.45, 0.45, k) * road_half
    drives = (shape == 2) & (road_half > 0) & (draw(0, 1, k) < 0.75)
    foot_x = torch.where(drives, lane, draw(0.02, 0.98, k))
    foot_y = torch.where(floats, air, ground)

    # Hues spread round the class's own; at difficulty 1 the hue tells nothing.
    spread = 0.10 + 0.90 * difficulty
    hue = (_HUE.to(device)[shape] + spread * (draw(0, 1, k) - 0.5)) % 1.0
    colour = _hsv(hue, draw(0.55, 0.95, k), draw(0.45, 0.98, k))
    accent = _hsv((hue + draw(-0.12, 0.12, k)) % 1.0, draw(0.2, 0.7, k), draw(0.75, 1.0, k))
    trunk = torch.tensor([0.33, 0.22, 0.14], device=device)
    glass = torch.tensor([0.74, 0.86, 0.92], device=device)
    accent = torch.where((shape <= 1)[..., None], trunk, accent)
    accent = torch.where((shape == 2)[..., None], glass, accent)
    style = draw(0, 1, 4 * k).view(-1, k, 4)
    tilt = torch.where(shape == 6, 0.5, torch.where(shape == 5, 0.07, 0.0))
    return _Objects(
        shape=shape,
        present=present,
        foot_x=foot_x * size,
        foot_y=foot_y * size,
        height=height * size,
        lean=tilt * draw(-1, 1, k),
        colour=colour * white_balance[:, None],
        accent=accent * white_balance[:, None],
        style=style,
        shadow=torch.where(floats, 0.0, 0.45),
        sun=(sun_x[:, None] * 2 - 1).expand(-1, k).clamp(-1, 1),
    )


# ---------------------------------------------------------------------------------------------
# Atlases: textures computed once, of which each scene cuts a window
# ---------------------------------------------------------------------------------------------


def _tile(size: int) -> int:
    return 16 if size >= 128 else 8


def _canvas(size: int) -> int:
    """The image side, rounded up to whole tiles."""
    return -(-size // _tile(size)) * _tile(size)


def _atlas_margin(size: int) -> int:
    return 6 * size


def _noise_margin(size: int) -> int:
    return 8 * size * size


def _value_noise(rows: Tensor, columns: Tensor, salt: int) -> Tensor:
    """Smooth noise in [-1, 1] at the grid of real coordinates `rows` [R, C] x `columns` [R, C]."""
    row, column = rows.floor(), columns.floor()
    fr, fc = rows - row, columns - column
    fr, fc = fr * fr * (3 - 2 * fr), fc * fc * (3 - 2 * fc)

    def corner(dr, dc):
        key = ((row + dr).long() << 20) + (column + dc).long() + (salt << 44)
        return (_scramble(key) >> 40 & 0xFFFFFF).float() / (1 << 23) - 1

    top = corner(0, 0) + (corner(0, 1) - corner(0, 0)) * fc
    low = corner(1, 0) + (corner(1, 1) - corner(1, 0)) * fc
    return top + (low - top) * fr


@lru_cache(maxsize=8)
def _atlases(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Clouds and turf [2 * canvas, canvas + margin], and sensor noise [3 * canvas² + margin].

    The middle row of clouds and turf lies on the horizon of every scene: clouds are mirrored
    there, so that water reflects them, and turf grows coarser with the distance from it.
    """
    canvas = _canvas(size)
    # Computed on the CPU, whatever the default device, so that all devices have the same atlas.
    cpu = torch.device("cpu")
    rows = ((torch.arange(2 * canvas, device=cpu) - canvas + 0.5) / size)[:, None]
    columns = (torch.arange(canvas + _atlas_margin(size), device=cpu) / size)[None, :]
    rows, columns = torch.broadcast_tensors(rows, columns)

    up = rows.abs() + 0.06
    clouds = sum(
        _value_noise(torch.log(up) * 3 * f, columns * 2.2 * f, salt) / f**0.8
        for salt, f in enumerate((1.0, 2.0, 4.0, 8.0))
    )
    clouds = (clouds * 1.1 - 0.1).clamp(0, 1) * (rows.abs() * 8).clamp(0, 1)

    near = rows.clamp(min=0) + 0.08
    turf = sum(
        _value_noise(torch.log(near) * 9 * f, columns * 18 * f, 8 + salt) / f**0.5
        for salt, f in enumerate((1.0, 2.2, 5.0))
    )
    turf = 0.45 + 0.33 * turf

    counter = torch.arange(3 * canvas * canvas + _noise_margin(size), device=cpu)
    bits = _scramble(counter + (99 << 44))
    # The sum of four uniform numbers is close enough to a normal one; scaled to unit variance.
    noise = sum((bits >> (16 * n) & 0xFFFF).float() for n in range(4)) / 65536
    noise = (noise - 2) * math.sqrt(3)
    return clouds.to(device), turf.to(device), noise.to(device)


def _cut(atlas: Tensor, starts: Tensor, height: int, width: int) -> Tensor:
    """Windows [n, height, width] of a contiguous atlas; `starts` count its elements."""
    stride = atlas.shape[-1] if atlas.dim() == 2 else width
    views = atlas.numel() - (height - 1) * stride - width + 1
    return atlas.as_strided((views, height, width), (1, stride, 1)).index_select(0, starts)


# ---------------------------------------------------------------------------------------------
# 2. Stuff: coverage planes and one matrix product
# ---------------------------------------------------------------------------------------------


def _stuff(s: _Scenes, size: int) -> tuple[Tensor, Tensor]:
    """Paint sky, ground, road and water: rgb float32 [n, 3, H, W] in 0..255, class [n, H, W]."""
    device, canvas = s.ridge_px.device, _canvas(size)
    clouds, turf, _ = _atlases(size, device)
    n = len(s.ridge_px)
    x = torch.arange(canvas, device=device).add(0.5)[None, None, :]
    y = torch.arange(canvas, device=device).add(0.5)[None, :, None]

    planes = torch.empty(n, 12, canvas, canvas, device=device)
    skyish, fade, cloud, glow, grass, dry, haze, road, dash, edge, wet, bank = planes.unbind(1)

    # Coverages: 0 outside, 1 inside, a ramp of one pixel between them.
    ground = (y - (s.ridge_px - 0.5)).clamp_(0, 1)
    off_centre = (x - s.road_centre_px).abs_()
    torch.sub(s.road_half_px, off_centre, out=road).clamp_(0, 1).mul_(ground)
    torch.sub(s.dash_half_px, off_centre, out=dash).clamp_(0, 1)
    dash.mul_(road)
    torch.sub(off_centre, s.road_half_px * 0.85, out=edge).clamp_(0, 1).mul_(road)
    into_pond = s.pond_x + s.pond_y  # negative inside
    land = ground - road
    torch.sub(0.5, into_pond, out=wet).clamp_(0, 1).mul_(land)
    torch.sub(s.bank_px, into_pond, out=bank).clamp_(0, 1).mul_(land).sub_(wet)
    torch.sub(land, wet, out=grass)

    # 0 sky, 1 grass, 2 road, 3 water: road and water lie on the ground and exclude each other.
    solid, paved, flooded = ((cover > 0.5).view(torch.uint8) for cover in (ground, road, wet))
    label = solid.add_(paved).add_(flooded, alpha=2)

    # Water shows the sky: fade, clouds and glow are mirrored at the horizon.
    torch.sub(1, ground, out=skyish).add_(wet, alpha=0.86)
    torch.mul(skyish, s.fade, out=fade)
    torch.mul(skyish, _cut(clouds, s.windows[:, 0], canvas, canvas), out=cloud)
    torch.mul(skyish, s.glow_x, out=glow).mul_(s.glow_y)
    torch.mul(grass, _cut(turf, s.windows[:, 1], canvas, canvas), out=dry)
    torch.mul(grass, s.haze, out=haze)
    rgb = torch.bmm(s.stuff_colours, planes.view(n, 12, -1))
    return rgb.view(n, 3, canvas, canvas), label


# ---------------------------------------------------------------------------------------------
# 3. Bin: which tiles does each object touch?
# ---------------------------------------------------------------------------------------------


@dataclass
class _Pairs:
    """P pairs (object, tile), sorted by shape."""

    object: Tensor  # [P] number of the object, 0 .. B * OBJECTS - 1
    tile: Tensor  # [P] number of the tile, counted through all scenes
    counts: list[int]  # pairs of each shape
    by_tile: Tensor  # [P] the pairs sorted by tile and, within a tile, from the deepest
    layers_of_tile: Tensor  # [tiles] how many pairs a tile has
    bottom_of_tile: Tensor  # [tiles] where in `by_tile` they begin


def _bin(o: _Objects, size: int) -> _Pairs:
    """List the tiles under each object's frame; objects outside the image have none."""
    tile, across = _tile(size), _canvas(size) // _tile(size)
    reach = o.height * (_HALF_WIDTH.to(o.shape.device)[o.shape] + o.lean.abs())
    below = o.height * (0.13 + 0.6 * o.lean.abs())  # shadow, or the corner of a leaning frame
    first_x, last_x, first_y, last_y = (
        (edge / tile).floor().long().clamp(-1, across)
        for edge in (o.foot_x - reach - 1, o.foot_x + reach + 1,
                     o.foot_y - o.height - 1, o.foot_y + below + 1)
    )  # fmt: skip
    first_x, first_y = first_x.clamp(min=0), first_y.clamp(min=0)
    last_x, last_y = last_x.clamp(max=across - 1), last_y.clamp(max=across - 1)
    columns = (last_x - first_x + 1).clamp(min=0)
    tiles = (columns * (last_y - first_y + 1).clamp(min=0) * o.present).flatten()

    order = o.shape.flatten().argsort(stable=True)
    repeats = tiles[order]
    objects = order.repeat_interleave(repeats)
    starts = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    nth = torch.arange(len(objects), device=objects.device) - starts
    columns = columns.flatten()[objects]
    row = first_y.flatten()[objects] + nth // columns
    column = first_x.flatten()[objects] + nth % columns
    tile_number = (objects // OBJECTS * across + row) * across + column
    layers_of_tile = torch.bincount(tile_number, minlength=len(o.shape) * across * across)
    return _Pairs(
        object=objects,
        tile=tile_number,
        counts=torch.bincount(o.shape.flatten()[objects], minlength=len(_SHAPES)).tolist(),
        by_tile=(tile_number * OBJECTS + objects % OBJECTS).argsort(),
        layers_of_tile=layers_of_tile,
        bottom_of_tile=layers_of_tile.cumsum(0) - layers_of_tile,
    )


# ---------------------------------------------------------------------------------------------
# 4. Shade: the shapes, as signed distances
# ---------------------------------------------------------------------------------------------
# A shape takes coordinates u, v [P, pixels] of its frame and returns (outside, light, accent):
# a distance in units of the height that is negative inside and true near the outline, the
# brightness, and the share of the accent colour. `height_px` [P, 1] makes pixels of distances;
# `style` [P, 4] are random numbers to vary with, `sun` [P, 1] tells from where the light comes.


def _cover(outside: Tensor, height_px: Tensor) -> Tensor:
    """Coverage of a pixel from its distance to the outline: a ramp of one pixel."""
    return (0.5 - outside * height_px).clamp_(0, 1)


def _disc(u, v, centre_v, radius):
    """Distance to a disc, first order at its edge (no square root)."""
    w = v - centre_v
    return (u * u).addcmul_(w, w).sub_(radius * radius).mul_(0.5 / radius)


def _saw(phase):
    """Stripes of period 1: negative in every second half period, with slopes of 1."""
    return 0.25 - (phase - phase.floor()).sub_(0.5).abs_()


def _round_tree(u, v, height_px, style, sun):
    lobe = torch.minimum(_disc(u.abs() - 0.13, v, -0.52, 0.22), _disc(u, v, -0.72, 0.27))
    trunk = torch.maximum(u.abs() - 0.055, v)
    trunk = torch.maximum(trunk, -0.6 - v)
    light = 0.80 + 0.30 * sun * u - 0.25 * (v + 0.6)
    return torch.minimum(lobe, trunk), light, _cover(-lobe, height_px)


def _conifer(u, v, height_px, style, sun):
    # Two stacked triangles, each the larger of the distances to its slope and to its base.
    wide = u.abs()
    top = torch.maximum(wide * 0.93 - (v + 1.0) * 0.40, v + 0.46)
    skirt = torch.maximum(wide * 0.92 - (v + 0.80) * 0.44, v + 0.14)
    crown = torch.minimum(top, skirt)
    trunk = torch.maximum(wide - 0.05, v)
    trunk = torch.maximum(trunk, -0.2 - v)
    light = 0.78 + 0.6 * sun * u + 0.35 * (v + 0.46).abs()
    return torch.minimum(crown, trunk), light, _cover(-crown, height_px)


def _car(u, v, height_px, style, sun):
    wide = u.abs()
    body = torch.maximum(wide - 1.05, (v + 0.38).abs() - 0.24)
    body = torch.maximum(body, wide * 0.7 + (v + 0.38).abs() * 0.7 - 0.82)
    cabin = torch.maximum(wide - (v + 0.6) * 0.35 - 0.60, (v + 0.78).abs() - 0.22)
    wheel = _disc(wide - 0.60, v, -0.20, 0.20)
    hub = _disc(wide - 0.60, v, -0.20, 0.08)
    pane = torch.maximum(wide - (v + 0.6) * 0.35 - 0.49, (v + 0.76).abs() - 0.13)
    pane = torch.maximum(pane, 0.045 - wide)
    outside = torch.minimum(torch.minimum(body, cabin), wheel)
    dark = _cover(wheel, height_px) - _cover(hub, height_px)
    light = (1.02 + 0.12 * sun * u - 0.35 * (v + 0.5)) * (1 - 0.85 * dark)
    return outside, light, _cover(pane, height_px)


def _ball(u, v, height_px, style, sun):
    w = v + 0.5
    light = 0.92 + 0.45 * (sun * u - 0.8 * w) - 0.5 * (u * u + w * w)
    stripes = _saw((u * style[:, :1] + w * (1 - style[:, :1])) * (3 + 3 * style[:, 1:2]))
    stripes = _cover(stripes * 0.25, height_px)
    return _disc(u, v, -0.5, 0.5), light, stripes * (style[:, 2:3] < 0.5)


def _ring(u, v, height_px, style, sun):
    w = v + 0.5
    outside = torch.maximum(_disc(u, v, -0.5, 0.5), -_disc(u, v, -0.5, 0.27))
    light = 0.95 + 0.35 * (sun * u - w)
    bands = _cover(_saw((u + w) * (2 + 3 * style[:, 1:2])) * 0.3, height_px)
    return outside, light, bands * (style[:, 2:3] < 0.35)


def _pole(u, v, height_px, style, sun):
    # Never thinner than 1.2 pixels, or it would vanish from the truth.
    half = torch.maximum(0.018 + 0.012 * style[:, :1], 0.62 / height_px)
    mast = torch.maximum(u.abs() - half, v)
    mast = torch.maximum(mast, -1 - v)
    bar = torch.maximum(u.abs() - 0.18, (v + 0.86).abs() - half * 0.8)
    bar = bar + (style[:, 1:2] < 0.45) * 4.0  # a plain pole has none
    light = 0.7 + 6 * sun * u
    return torch.minimum(mast, bar), light, torch.zeros_like(u)


def _star(u, v, height_px, style, sun):
    # A pentagram is where at most one of five half planes is left, so the second largest of the
    # five distances is its distance.
    w = v + 0.5
    largest = second = torch.full_like(u, -1.0)
    for k in range(5):
        angle = 2 * math.pi * k / 5
        distance = u * math.sin(angle) - w * math.cos(angle) - 0.5 * math.cos(0.4 * math.pi)
        second = torch.maximum(second, torch.minimum(largest, distance))
        largest = torch.maximum(largest, distance)
    light = 1.08 - 0.6 * (u * u + w * w)
    return second, light, torch.zeros_like(u)


_OUTLINES = (_round_tree, _conifer, _car, _ball, _ring, _pole, _star)


def _shade(o: _Objects, pairs: _Pairs, size: int) -> tuple[Tensor, Tensor]:
    """Draw every object inside its tiles.

    Returns layers float32 [P, 4, tile²] (what the layer keeps of the picture below it, and the
    red, green and blue that it adds) and codes uint8 [P, tile²] (class | instance << 4; 0 outside
    the object).
    """
    tile, across = _tile(size), _canvas(size) // _tile(size)
    facts = _facts(o).flatten(0, 1)
    layers = facts.new_empty(len(pairs.object), 4, tile * tile)
    codes = torch.empty(len(pairs.object), tile * tile, dtype=torch.uint8, device=facts.device)
    first = 0
    for shape, count in zip(_OUTLINES, pairs.counts, strict=True):
        for start in range(first, first + count, _CHUNK):
            part = slice(start, min(start + _CHUNK, first + count))
            place = pairs.tile[part] % (across * across)
            corner_px = torch.stack([place % across, place // across], 1) * tile
            fact = facts[pairs.object[part]]
            _paint(shape, fact, corner_px, tile, layers[part], codes[part])
        first += count
    return layers, codes


_FACTS = (9, 4, 3, 3)  # single numbers, style, colour, accent


def _facts(o: _Objects) -> Tensor:
    """What painting needs to know of each object, in one row: [B, OBJECTS, sum(_FACTS)]."""
    device = o.height.device
    number = torch.arange(1, OBJECTS + 1, device=device)
    code = _CLASS_OF.to(device)[o.shape] | number << 4  # nearer objects have larger codes
    upright = (1 - o.lean * o.lean).sqrt()
    spread = 1 / _HALF_WIDTH.to(device)[o.shape]  # the shadow is as wide as the frame
    single = [o.foot_x, o.foot_y, 1 / o.height, upright, o.lean, o.sun, code, o.shadow, spread]
    return torch.cat([torch.stack(single, 2), o.style, o.colour, o.accent], 2)


def _paint(
    shape: Callable, fact: Tensor, corner_px: Tensor, tile: int, layer: Tensor, codes: Tensor
) -> None:
    """Paint P objects of one shape, one tile each, into `layer` [P, 4, tile²] and `codes`."""
    single, style, colour, accent_colour = fact.split(_FACTS, 1)
    foot_x, foot_y, scale, upright, lean, sun, code, shadow, spread = single[..., None].unbind(1)

    # From pixels to the object's frame.
    grid = torch.arange(tile, device=fact.device) + 0.5
    px_y, px_x = (g.flatten() for g in torch.meshgrid(grid, grid, indexing="ij"))
    dx = px_x + (corner_px[:, :1] - foot_x)
    dy = px_y + (corner_px[:, 1:] - foot_y)
    u = (dx * (upright * scale)).addcmul_(dy, lean * scale)
    v = (dy * (upright * scale)).addcmul_(dx, -lean * scale)

    outside, light, accent = shape(u, v, 1 / scale, style, sun)
    alpha = _cover(outside, 1 / scale)
    codes.copy_(alpha.round().mul_(code))

    # A soft shadow lies on the ground round the foot.
    shade = 1 - (u * spread).square_() - (v * 8.0).square_()
    shade.clamp_(0, 1).mul_(shadow)
    torch.mul(1 - alpha, 1 - shade, out=layer[:, 0])

    light = light.clamp_(0.08, 1.5).mul_(alpha)
    accent = light * accent
    light -= accent
    torch.mul(colour[:, :, None], light[:, None], out=layer[:, 1:])
    layer[:, 1:].addcmul_(accent_colour[:, :, None], accent[:, None])


# ---------------------------------------------------------------------------------------------
# 5. Composite: painter's algorithm over tiles
# ---------------------------------------------------------------------------------------------


def _composite(
    rgb: Tensor, label: Tensor, first: int, pairs: _Pairs, layers: Tensor, codes: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Paint the objects of scenes first, first + 1, ... over rgb [n, 3, H, W] and label [n, H, W].

    Layer k of all tiles is painted at once. The tiles with most layers come first, so layer k is a
    slice.
    """
    n, tile, across = len(rgb), _tile(size), _canvas(size) // _tile(size)
    tiles = slice(first * across * across, (first + n) * across * across)
    counts, bottom = pairs.layers_of_tile[tiles], pairs.bottom_of_tile[tiles]
    busy = counts.argsort(descending=True)
    depth_of = counts[busy].tolist()
    covered = int((counts > 0).sum())

    colour, code = _to_tiles(rgb, tile), _to_tiles(label[:, None], tile)[:, 0]
    busy = busy[:covered]
    canvas, marks = colour.index_select(0, busy), code.index_select(0, busy)
    bottom = bottom[busy]
    among = covered
    for layer in range(depth_of[0]):
        while depth_of[among - 1] <= layer:
            among -= 1
        pair = pairs.by_tile[bottom[:among] + layer]
        stroke = layers.index_select(0, pair)
        canvas[:among].mul_(stroke[:, :1]).add_(stroke[:, 1:])
        torch.maximum(marks[:among], codes.index_select(0, pair), out=marks[:among])
    colour.index_copy_(0, busy, canvas)
    code.index_copy_(0, busy, marks)
    return _from_tiles(colour, n), _from_tiles(code[:, None], n)[:, 0]


def _to_tiles(image: Tensor, tile: int) -> Tensor:
    """[n, C, H, W] -> [n * tiles, C, tile²]"""
    n, channels, side, _ = image.shape
    image = image.view(n, channels, side // tile, tile, side // tile, tile)
    return image.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, tile * tile)


def _from_tiles(tiles: Tensor, n: int) -> Tensor:
    """[n * tiles, C, tile²] -> [n, C, H, W]"""
    channels, tile = tiles.shape[1], math.isqrt(tiles.shape[2])
    across = math.isqrt(len(tiles) // n)
    image = tiles.view(n, across, across, channels, tile, tile).permute(0, 3, 1, 4, 2, 5)
    return image.reshape(n, channels, across * tile, across * tile)


# ---------------------------------------------------------------------------------------------
# 6. Camera: light, blur, noise, eight bits
# ---------------------------------------------------------------------------------------------


def _camera(rgb: Tensor, s: _Scenes, size: int) -> Tensor:
    """Turn light [n, 3, H, W] into a picture uint8 [n, 3, size, size]."""
    n, _, canvas, _ = rgb.shape
    rgb = rgb.mul_(s.light_x).mul_(s.light_y)
    for dim in (2, 3):  # a blur of three pixels, one dimension after the other
        before, after = rgb.narrow(dim, 0, canvas - 2), rgb.narrow(dim, 2, canvas - 2)
        around = before + after
        rgb.narrow(dim, 1, canvas - 2).mul_(1 - 2 * s.blur).addcmul_(around, s.blur)
    grain = _cut(_atlases(size, rgb.device)[2], s.windows[:, 2], 3 * canvas, canvas)
    rgb.addcmul_(grain.view_as(rgb), s.noise)
    return rgb.clamp_(0, 255).to(torch.uint8)[:, :, :size, :size].contiguous()


# ---------------------------------------------------------------------------------------------
# All stages together
# ---------------------------------------------------------------------------------------------


def render(
    seed: int, split: int, indices: Tensor, size: int, difficulty: float, star_size: float
) -> tuple[Tensor, Tensor]:
    """Images uint8 [B, 3, size, size] and codes uint8 [B, size, size], where `indices` live."""
    # A caller's autocast would round the matrix product.
    with torch.no_grad(), torch.autocast(indices.device.type, enabled=False):
        return _render(seed, split, indices, size, difficulty, star_size)


def _render(
    seed: int, split: int, indices: Tensor, size: int, difficulty: float, star_size: float
) -> tuple[Tensor, Tensor]:
    scenes = _sample(seed, split, indices, size, difficulty, star_size)
    pairs = _bin(scenes.objects, size)
    layers, codes = _shade(scenes.objects, pairs, size)
    block = len(indices)
    if indices.device.type == "cpu":
        block = max(1, _CACHE_PX // _canvas(size) ** 2)
    images, labels = [], []
    for first in range(0, len(indices), block):
        part = scenes.rows(first, first + block)
        rgb, label = _stuff(part, size)
        rgb, label = _composite(rgb, label, first, pairs, layers, codes, size)
        images.append(_camera(rgb, part, size))
        labels.append(label[:, :size, :size])
    return torch.cat(images), torch.cat(labels)
