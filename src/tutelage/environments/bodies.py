"""Bodies of agents as data, and the one builder that puts them into a Box2D world.

    default       the walker of Gymnasium's BipedalWalker-v3, joint for joint
    short         the same with legs half as long
    quadrupedal   two pairs of longer legs under a larger hull, stronger motors
    small-bipedal the short walker with straight legs of the later benchmark
    bipedal       the default walker with straight legs of the later benchmark
    spider        a small trunk and two legs of three parts on either side

Lengths are pixels of Gymnasium's walker, 30 to a metre; angles are radians. A limb hangs on its parent by a hinge with limits and a motor;
an agent's action is one number per motor, and it reads angle and speed of each, and of some limbs whether they touch the ground.

Sources: default, short and quadrupedal of Portelas et al. (CoRL 2019, arXiv 1910.07224), small-bipedal, bipedal and spider of Romac et al.
(TeachMyAgent, ICML 2021, arXiv 2103.09815); sizes and motors as in the released environments. `limb_size` scales the length of every limb,
as in Portelas et al. (Meta Automatic Curriculum Learning, arXiv 2011.08463).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.errors import TutelageError, unknown

Point = tuple[float, float]

PIXELS = 30.0
GROUND = 0x0001
AGENT = 0x0020
HIP, KNEE = 4.0, 6.0
TRUNK = -1
PER_TORQUE = 0.00035 * 80


@dataclass(frozen=True, kw_only=True)
class Limb:
    """A rigid part on a hinge.

    parent: index of the limb it hangs from, or `TRUNK`. shape: convex polygon around its own centre. socket, pivot: the hinge in the frame of
    the parent and in its own. angle: in the world, at the start. rest: the angle between both that the joint calls zero. low, high: limits of
    the joint. speed: of its motor. offset: added to the angle that the agent reads. feels: whether the agent reads its contact with the ground.
    lift: how far above the hinge it starts (the solver closes the gap in its first step).
    """

    parent: int
    shape: tuple[Point, ...]
    socket: Point
    pivot: Point
    low: float
    high: float
    speed: float
    angle: float = 0.0
    rest: float = 0.0
    offset: float = 0.0
    feels: bool = False
    lift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Body:
    """trunk: its convex polygon. limbs: parents before children. torque: of every motor. cost: of a full action on one motor, per step.
    clearance + reach: height of the trunk's centre above the ground at the start; the reach grows with the limbs. width: of the start pad
    that it needs.
    """

    trunk: tuple[Point, ...]
    limbs: tuple[Limb, ...]
    torque: float
    cost: float
    reach: float
    clearance: float = 0.0
    width: float = 64.0
    density: float = 5.0


def box(width: float, height: float) -> tuple[Point, ...]:
    """A rectangle around its centre."""
    x, y = width / 2, height / 2
    return ((-x, -y), (x, -y), (x, y), (-x, y))


def _leg(first: int, length: float, width: float, hip: Point, tilt: float = 0.0, lift: float = 0.0) -> list[Limb]:
    """Thigh and shin, `first` being the index of the thigh."""
    top, bottom = (0.0, length / 2), (0.0, -length / 2)
    thigh = Limb(parent=TRUNK, shape=box(width, length), socket=hip, pivot=top, low=-0.8, high=1.1, speed=HIP, angle=tilt, lift=lift)
    shin = Limb(
        parent=first, shape=box(0.8 * width, length), socket=bottom, pivot=top, low=-1.6, high=-0.1, speed=KNEE, angle=tilt, offset=1.0,
        feels=True,
    )  # fmt: skip
    return [thigh, shin]


def _legs(hips: Iterable[Point], length: float, width: float, *, tilt: float = 0.0, lift: float = 0.0) -> tuple[Limb, ...]:
    """A pair of legs at each hip; `tilt` turns one back and the other forth."""
    limbs: list[Limb] = []
    for hip in hips:
        for side in (-1, 1):
            limbs += _leg(len(limbs), length, width, hip, side * tilt, lift)
    return tuple(limbs)


def _spider_legs() -> tuple[Limb, ...]:
    """Two legs on either side, each up, out and down; joints read zero in this pose."""
    limbs: list[Limb] = []
    top, bottom = (0.0, 10.0), (0.0, -10.0)
    for side in (1, -1, 1, -1):
        up, out, down = (side * share * math.pi for share in (0.25, 0.7, 0.9))
        first = len(limbs)
        # The upper part rises from the hip, so it hangs by its lower end; the others hang by their upper ends, upside down.
        limbs += [
            _spider_part(TRUNK, 6.0, (-10.0 * side, -4.0), bottom, up, up, 0.1, HIP),
            _spider_part(first, 6.0, top, bottom, out, out - up, 0.15, HIP),
            _spider_part(first + 1, 4.8, top, bottom, down, down - out, 0.2, KNEE),
        ]
    return tuple(limbs)


def _spider_part(parent: int, width: float, socket: Point, pivot: Point, angle: float, rest: float, limit: float, speed: float) -> Limb:
    return Limb(
        parent=parent, shape=box(width, 20.0), socket=socket, pivot=pivot, low=-limit * math.pi, high=limit * math.pi, speed=speed,
        angle=angle, rest=rest, feels=speed == KNEE,
    )  # fmt: skip


_HULL = ((-30.0, 9.0), (6.0, 9.0), (34.0, 1.0), (34.0, -8.0), (-30.0, -8.0))
_BIG_HULL = ((-46.0, 13.0), (6.0, 13.0), (50.0, 5.0), (50.0, -12.0), (-46.0, -12.0))
_GYM = {"tilt": 0.05, "lift": 16.0}  # the pose of BipedalWalker-v3, whose legs start inside the hull

WALKERS: dict[str, Body] = {
    "default": Body(trunk=_HULL, limbs=_legs([(0.0, -8.0)], 34.0, 8.0, **_GYM), torque=80.0, cost=PER_TORQUE, reach=68.0),
    "short": Body(trunk=_HULL, limbs=_legs([(0.0, -8.0)], 17.0, 8.0, **_GYM), torque=80.0, cost=PER_TORQUE, reach=34.0),
    "quadrupedal": Body(
        trunk=_BIG_HULL, limbs=_legs([(-36.0, -8.0), (25.5, -8.0)], 51.0, 10.0, **_GYM), torque=300.0, cost=PER_TORQUE * 300 / 80 / 8,
        reach=102.0, width=96.0,
    ),
    "small-bipedal": Body(trunk=_HULL, limbs=_legs([(0.0, -3.0)], 17.0, 8.0), torque=80.0, cost=PER_TORQUE, reach=34.0, clearance=3.0),
    "bipedal": Body(trunk=_HULL, limbs=_legs([(0.0, -3.0)], 34.0, 8.0), torque=80.0, cost=PER_TORQUE, reach=68.0, clearance=3.0),
    "spider": Body(
        trunk=box(20.0, 20.0), limbs=_spider_legs(), torque=100.0, cost=PER_TORQUE / 2, reach=20.0, clearance=4.0, width=100.0
    ),
}  # fmt: skip


def named(name: str, bodies: dict[str, Body], limb_size: float = 1.0) -> Body:
    """The body of that name among `bodies`, its limbs `limb_size` times as long; raises `TutelageError` for another name or size."""
    if name not in bodies:
        raise unknown("body", name, bodies)
    if not 0.1 <= limb_size <= 4:
        raise TutelageError(f"limb_size is {limb_size}; expected a factor on the length of the limbs from 0.1 to 4 (1: as published).")
    body = bodies[name]
    return (
        body
        if limb_size == 1
        else replace(body, limbs=tuple(_longer(limb, limb_size) for limb in body.limbs), reach=body.reach * limb_size)
    )


def _longer(limb: Limb, factor: float) -> Limb:
    """`limb` with its length, along its own y axis, multiplied; what it hangs from on the trunk stays."""

    def long(point: Point) -> Point:
        return (point[0], point[1] * factor)

    socket = limb.socket if limb.parent == TRUNK else long(limb.socket)
    return replace(limb, shape=tuple(map(long, limb.shape)), socket=socket, pivot=long(limb.pivot))


@dataclass
class Part:
    """What a Box2D body of an agent carries as user data: what it touches now."""

    fatal: bool = False
    touching: int = 0


@dataclass
class Built:
    """An agent in a world: the trunk, then its limbs, with their user data; one joint per limb."""

    trunk: Any
    limbs: list[Any]
    joints: list[Any]
    parts: list[Part] = field(default_factory=list)


def build(world: Any, body: Body, x: float, ground: float, *, fatal_trunk: bool) -> Built:
    """Put `body` into a Box2D world, its trunk at `x`, standing on ground of that height (metres); touching it with a fatal part ends it."""
    from Box2D import b2

    def fixture(shape: Iterable[Point], density: float, **more: Any) -> Any:
        vertices = [(px / PIXELS, py / PIXELS) for px, py in shape]
        polygon = b2.polygonShape(vertices=vertices)
        return b2.fixtureDef(shape=polygon, density=density, restitution=0.0, categoryBits=AGENT, maskBits=GROUND, **more)

    y = ground + (body.clearance + body.reach) / PIXELS
    parts = [Part(fatal=fatal_trunk)]
    trunk = world.CreateDynamicBody(position=(x, y), fixtures=fixture(body.trunk, body.density, friction=0.1), userData=parts[0])
    centres: list[Point] = []
    built = Built(trunk, [], [], parts)
    for limb in body.limbs:
        centres.append(_centre(limb, body, centres, (x * PIXELS, y * PIXELS)))
        part = Part()
        limb_body = world.CreateDynamicBody(
            position=(centres[-1][0] / PIXELS, centres[-1][1] / PIXELS), angle=limb.angle, fixtures=fixture(limb.shape, 1.0), userData=part
        )
        joint = b2.revoluteJointDef(
            bodyA=trunk if limb.parent == TRUNK else built.limbs[limb.parent],
            bodyB=limb_body,
            localAnchorA=_metres(limb.socket),
            localAnchorB=_metres(limb.pivot),
            referenceAngle=limb.rest,
            enableMotor=True,
            enableLimit=True,
            maxMotorTorque=body.torque,
            lowerAngle=limb.low,
            upperAngle=limb.high,
        )
        built.limbs.append(limb_body)
        built.joints.append(world.CreateJoint(joint))
        parts.append(part)
    return built


def _centre(limb: Limb, body: Body, centres: list[Point], trunk: Point) -> Point:
    """Where the centre of a limb starts: its hinge on the parent's, lifted."""
    parent, angle = (trunk, 0.0) if limb.parent == TRUNK else (centres[limb.parent], body.limbs[limb.parent].angle)
    socket, pivot = _turned(limb.socket, angle), _turned(limb.pivot, limb.angle)
    return (parent[0] + socket[0] - pivot[0], parent[1] + socket[1] - pivot[1] + limb.lift)


def _turned(point: Point, angle: float) -> Point:
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine * point[0] - sine * point[1], sine * point[0] + cosine * point[1])


def _metres(point: Point) -> Point:
    return (point[0] / PIXELS, point[1] / PIXELS)
