"""Bodies of agents as data; `_building` puts them into a Box2D world.

    default       the walker of Gymnasium's BipedalWalker-v3, joint for joint
    short         the same with legs half as long
    quadrupedal   two pairs of longer legs under a larger hull, stronger motors
    small-bipedal the short walker with straight legs of the later benchmark
    bipedal       the default walker with straight legs of the later benchmark
    spider        a small trunk and two legs of three parts on either side
    climber       head, chest, legs and arms whose hands grip ceilings and creepers; it must not touch the ground
    fish          head, three parts of tail and a fin, as heavy as water

Lengths are pixels of Gymnasium's walker, 30 to a metre; angles are radians. A limb hangs on its parent by a hinge with limits and a motor;
an agent's action is one number per motor, and it reads angle and speed of each, and of some limbs whether they touch the ground.

Sources: default, short and quadrupedal of Portelas et al. (CoRL 2019, arXiv 1910.07224), the others of Romac et al. (TeachMyAgent, ICML
2021, arXiv 2103.09815); sizes and motors as in the released environments. `limb_size` scales the length of legs and arms, as in Portelas et
al. (Meta Automatic Curriculum Learning, arXiv 2011.08463). One difference: a hand's sensor is a fixture of the hand, not a body welded on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tutelage.errors import TutelageError, unknown

Point = tuple[float, float]

PIXELS = 30.0
HIP, KNEE, WRIST = 4.0, 6.0, 8.0
TRUNK = -1
PER_TORQUE = 0.00035 * 80


@dataclass(frozen=True, kw_only=True)
class Limb:
    """A rigid part on a hinge.

    parent: index of the limb it hangs from, or `TRUNK`. shape: convex polygon around its own centre. socket, pivot: the hinge in the frame
    of the parent and in its own. angle: in the world, at the start. rest: the angle between both that the joint calls zero. low, high:
    limits of the joint. speed: of its motor, 0 without one. offset: added to the angle that the agent reads. feels: whether the agent reads
    its contact with the terrain. lift, tilt: how far above the hinge it starts, and by how much turned around its centre (the solver closes
    the gap in its first step). fatal: whether the terrain must not touch it. grips: whether its upper end can hold on. stretches: whether
    `limb_size` applies.
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
    tilt: float = 0.0
    fatal: bool = False
    grips: bool = False
    stretches: bool = True


@dataclass(frozen=True, kw_only=True)
class Body:
    """trunk: its convex polygon. limbs: parents before children. torque: of every motor. cost: of a full action, per step.

    clearance + reach: height of the trunk's centre above the ground at the start; the reach grows with the limbs. density: of trunk and
    limbs, water being 1. head: the limb whose place and tilt count, or `TRUNK`. upright: whether tilt costs. swims: whether it dies out of
    water, and not under it. sweep: angle that the lidar covers, and where it begins, from straight down.
    """

    trunk: tuple[Point, ...]
    limbs: tuple[Limb, ...]
    torque: float
    cost: float
    reach: float
    clearance: float = 0.0
    density: tuple[float, float] = (5.0, 1.0)
    head: int = TRUNK
    upright: bool = True
    swims: bool = False
    sweep: tuple[float, float] = (1.5, 0.0)

    @property
    def climbs(self) -> bool:
        """Whether it has hands that grip."""
        return any(limb.grips for limb in self.limbs)


def box(width: float, height: float) -> tuple[Point, ...]:
    """A rectangle around its centre."""
    x, y = width / 2, height / 2
    return ((-x, -y), (x, -y), (x, y), (-x, y))


def _leg(first: int, length: float, width: float, hip: Point, tilt: float = 0.0, lift: float = 0.0) -> list[Limb]:
    """Thigh and shin, `first` being the index of the thigh."""
    top, bottom = (0.0, length / 2), (0.0, -length / 2)
    thigh = Limb(
        parent=TRUNK, shape=box(width, length), socket=hip, pivot=top, low=-0.8, high=1.1, speed=HIP, rest=tilt, tilt=tilt, lift=lift
    )
    shin = Limb(
        parent=first, shape=box(0.8 * width, length), socket=bottom, pivot=top, low=-1.6, high=-0.1, speed=KNEE, tilt=tilt, offset=1.0,
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


def _climber() -> Body:
    """Chest, head, two legs, two arms with hands."""
    head = Limb(
        parent=TRUNK, shape=box(10.0, 20.0), socket=(0.0, 22.5), pivot=(0.0, -16.0), low=-0.1 * math.pi, high=0.1 * math.pi, speed=0.0,
        fatal=True, stretches=False,
    )  # fmt: skip
    limbs = [head]
    for _ in range(2):
        thigh, shin = _leg(len(limbs), 28.0, 8.0, (0.0, -12.0))
        limbs += [replace(thigh, low=-0.3 * math.pi, high=0.6 * math.pi), replace(shin, low=-0.75 * math.pi, fatal=True)]
    top, bottom = (0.0, 14.0), (0.0, -14.0)
    for _ in range(2):
        first = len(limbs)
        limbs += [
            Limb(parent=TRUNK, shape=box(8.0, 28.0), socket=(0.0, 22.0), pivot=bottom, low=-1.5 * math.pi, high=0.0, speed=HIP),
            Limb(parent=first, shape=box(6.4, 28.0), socket=top, pivot=bottom, low=0.0, high=0.75 * math.pi, speed=HIP),
            Limb(
                parent=first + 1, shape=box(4.0, 8.0), socket=top, pivot=(0.0, -4.0), low=-0.5 * math.pi, high=0.5 * math.pi, speed=WRIST,
                feels=True, grips=True, stretches=False,
            ),
        ]  # fmt: skip
    chest = ((-12.0, 25.0), (12.0, 25.0), (8.0, -20.0), (-8.0, -20.0))
    return Body(
        trunk=chest,
        limbs=tuple(limbs),
        torque=100.0,
        cost=PER_TORQUE / 5,
        reach=56.0,
        clearance=12.0,
        head=0,
        upright=False,
        sweep=(2.3, 1.5),
    )


def _fish() -> Body:
    """A tail of three parts behind the head, and a fin below it."""

    def part(parent: int, nose: float, tail: float, width: float, socket: Point, low: float, high: float) -> Limb:
        shape = ((-width, tail), (width, nose), (width, -nose), (-width, -tail))
        return Limb(
            parent=parent, shape=shape, socket=socket, pivot=(width, 0.0), low=low * math.pi, high=high * math.pi, speed=KNEE, feels=True,
            stretches=False,
        )  # fmt: skip

    angle = -0.2 * math.pi
    fin = Limb(
        parent=TRUNK, shape=box(2.0, 20.0), socket=(0.0, -5.0), pivot=(0.0, 10.0), low=-0.3 * math.pi, high=0.2 * math.pi, speed=KNEE,
        angle=angle, rest=angle, feels=True, stretches=False,
    )  # fmt: skip
    tail = [
        part(TRUNK, 12.0, 9.0, 8.0, (-17.5, 0.0), -0.1, 0.2),
        part(0, 9.0, 4.0, 8.0, (-8.0, 0.0), -0.15, 0.15),
        part(1, 4.0, 2.0, 4.0, (-8.0, 0.0), -0.3, 0.3),
    ]
    head = ((-20.0, 12.0), (6.0, 12.0), (15.0, 4.0), (15.0, -4.0), (6.0, -12.0), (-20.0, -12.0))
    return Body(
        trunk=head, limbs=(*tail, fin), torque=80.0, cost=PER_TORQUE, reach=0.0, clearance=39.0, density=(0.99, 0.99), upright=False,
        swims=True, sweep=(math.pi, 0.0),
    )  # fmt: skip


_HULL = ((-30.0, 9.0), (6.0, 9.0), (34.0, 1.0), (34.0, -8.0), (-30.0, -8.0))
_BIG_HULL = ((-46.0, 13.0), (6.0, 13.0), (50.0, 5.0), (50.0, -12.0), (-46.0, -12.0))
_TILT, _LIFT = 0.05, 16.0  # the pose of BipedalWalker-v3, whose legs start inside the hull

WALKERS: dict[str, Body] = {
    "default": Body(trunk=_HULL, limbs=_legs([(0.0, -8.0)], 34.0, 8.0, tilt=_TILT, lift=_LIFT), torque=80.0, cost=PER_TORQUE, reach=68.0),
    "short": Body(trunk=_HULL, limbs=_legs([(0.0, -8.0)], 17.0, 8.0, tilt=_TILT, lift=_LIFT), torque=80.0, cost=PER_TORQUE, reach=34.0),
    "quadrupedal": Body(
        trunk=_BIG_HULL,
        limbs=_legs([(-36.0, -8.0), (25.5, -8.0)], 51.0, 10.0, tilt=_TILT, lift=_LIFT),
        torque=300.0,
        cost=PER_TORQUE * 300 / 80 / 8,
        reach=102.0,
    ),
    "small-bipedal": Body(trunk=_HULL, limbs=_legs([(0.0, -3.0)], 17.0, 8.0), torque=80.0, cost=PER_TORQUE, reach=34.0, clearance=3.0),
    "bipedal": Body(trunk=_HULL, limbs=_legs([(0.0, -3.0)], 34.0, 8.0), torque=80.0, cost=PER_TORQUE, reach=68.0, clearance=3.0),
    "spider": Body(trunk=box(20.0, 20.0), limbs=_spider_legs(), torque=100.0, cost=PER_TORQUE / 2, reach=20.0, clearance=4.0),
}
CLIMBERS: dict[str, Body] = {"climber": _climber()}
SWIMMERS: dict[str, Body] = {"fish": _fish()}


def named(name: str, bodies: dict[str, Body], limb_size: float = 1.0) -> Body:
    """The body of that name among `bodies`, its limbs `limb_size` times as long; raises `TutelageError` for another name or size."""
    if name not in bodies:
        raise unknown("body", str(name), bodies)
    body = bodies[name]
    if not 0.1 <= limb_size <= 4:
        raise TutelageError(f"limb_size is {limb_size}; expected a factor on the length of the limbs from 0.1 to 4 (1: as published).")
    if limb_size == 1:
        return body
    if not any(limb.stretches for limb in body.limbs):
        raise TutelageError(f"limb_size is {limb_size}, but the body {name!r} has no legs or arms; leave limb_size at 1.")
    return replace(body, limbs=tuple(_longer(limb, body, limb_size) for limb in body.limbs), reach=body.reach * limb_size)


def _longer(limb: Limb, body: Body, factor: float) -> Limb:
    """`limb` with its length, along its own y axis, multiplied; its hinge moves where its parent grows."""

    def long(point: Point) -> Point:
        return (point[0], point[1] * factor)

    socket = long(limb.socket) if limb.parent != TRUNK and body.limbs[limb.parent].stretches else limb.socket
    if not limb.stretches:
        return replace(limb, socket=socket)
    return replace(limb, shape=tuple(map(long, limb.shape)), socket=socket, pivot=long(limb.pivot))
