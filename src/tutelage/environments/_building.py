"""What puts bodies (`bodies`) and terrain into a Box2D world.

Definitions of fixtures are made once and used again for every episode: pybox2d never frees the shape of a definition it has copied, nor an
object that a world's bodies carried as user data, so that making new ones leaks some 40 kB an episode.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from tutelage.environments.bodies import PIXELS, TRUNK, Body, Limb, Point
from tutelage.errors import missing_extra

try:
    import Box2D
    from Box2D import b2
except ImportError:
    raise missing_extra("Box2D", "rl") from None

__all__ = ["AGENT", "CREEPER", "GROUND", "Box2D", "Builder", "Built", "Grip", "Part", "Terrain", "b2", "placed"]

GROUND, CREEPER, AGENT = 0x0001, 0x0004, 0x0020  # collision categories


@dataclass
class Part:
    """What a part touches now, and whether the terrain may touch it."""

    fatal: bool = False
    touching: int = 0


@dataclass
class Grip:
    """The end of a hand: the surfaces it touches, whether it is to hold on, and the joint by which it does."""

    hand: Any
    tip: Point
    surfaces: list[Any] = field(default_factory=list)
    joint: Any = None
    wants: bool = False


@dataclass
class Built:
    """An agent in a world: the trunk and then its limbs, what each touches, its outline (metres); a motor for each limb that has one."""

    bodies: list[Any]
    parts: list[Part]
    outlines: list[tuple[Point, ...]]
    joints: list[Any]
    motors: list[Any]
    grips: list[Grip]
    head: Any


class Builder:
    """Puts one `Body` into world after world. fatal_trunk: whether the terrain must not touch the trunk.

    A Box2D body carries the number of its part as user data, a hand's sensor that of its grip.
    """

    def __init__(self, body: Body, *, fatal_trunk: bool) -> None:
        self.body, self._fatal_trunk = body, fatal_trunk
        self._outlines = [_outline(shape) for shape in (body.trunk, *(limb.shape for limb in body.limbs))]
        centres: list[Point] = []
        for limb in body.limbs:
            centres.append(_centre(limb, body, centres))
        self._centres = [_metres(centre) for centre in centres]
        self._moulds = [_mould(outline, body.density[i > 0], 0.2 if i else 0.1) for i, outline in enumerate(self._outlines)]
        tips = [(0.0, max(y for _, y in outline)) for limb, outline in zip(body.limbs, self._outlines[1:], strict=True) if limb.grips]
        self._tips = tips
        self._sensors = [
            b2.fixtureDef(shape=b2.circleShape(pos=tip, radius=0.05), isSensor=True, categoryBits=AGENT, maskBits=GROUND | CREEPER)
            for tip in tips
        ]

    def build(self, world: Any, x: float, ground: float) -> Built:
        """The agent with its trunk at `x`, standing on ground of that height (metres)."""
        body = self.body
        y = ground + (body.clearance + body.reach) / PIXELS
        bodies = [world.CreateDynamicBody(position=(x, y), fixtures=self._moulds[0], userData=0)]
        for i, (limb, centre) in enumerate(zip(body.limbs, self._centres, strict=True), start=1):
            at = (x + centre[0], y + centre[1])
            bodies.append(world.CreateDynamicBody(position=at, angle=limb.angle + limb.tilt, fixtures=self._moulds[i], userData=i))
        joints = [
            _hinge(world, bodies[limb.parent + 1], made, limb, body.torque) for limb, made in zip(body.limbs, bodies[1:], strict=True)
        ]
        parts = [Part(self._fatal_trunk), *(Part(limb.fatal) for limb in body.limbs)]
        motors = [joint for limb, joint in zip(body.limbs, joints, strict=True) if limb.speed]
        hands = [made for limb, made in zip(body.limbs, bodies[1:], strict=True) if limb.grips]
        grips = [Grip(hand, tip) for hand, tip in zip(hands, self._tips, strict=True)]
        for number, (hand, sensor) in enumerate(zip(hands, self._sensors, strict=True)):
            hand.CreateFixture(sensor).userData = number
        return Built(bodies, parts, self._outlines, joints, motors, grips, bodies[body.head + 1])


class Terrain:
    """Lays edges and boxes on static bodies."""

    def __init__(self, friction: float) -> None:
        self._edge = b2.fixtureDef(shape=b2.edgeShape(vertices=[(0, 0), (1, 0)]), friction=friction, categoryBits=GROUND)
        self._rock = b2.fixtureDef(shape=b2.polygonShape(box=(1, 1)), friction=friction, categoryBits=GROUND)
        self._creeper = b2.fixtureDef(shape=b2.polygonShape(box=(1, 1)), isSensor=True, categoryBits=CREEPER)

    def line(self, body: Any, points: list[Point]) -> None:
        """Edges from point to point."""
        for ends in itertools.pairwise(points):
            self._edge.shape.vertices = list(ends)
            body.CreateFixture(self._edge)

    def box(self, body: Any, left: float, bottom: float, width: float, height: float, *, creeper: bool = False) -> None:
        """A box of rock; or a creeper, which hands feel and nothing bumps into."""
        mould = self._creeper if creeper else self._rock
        mould.shape.SetAsBox(width / 2, height / 2, (left + width / 2, bottom + height / 2), 0.0)
        body.CreateFixture(mould)


def placed(outline: tuple[Point, ...], body: Any) -> list[Point]:
    """The outline of a body where the body is now, in metres."""
    (x, y), angle = body.position, body.angle
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(x + cosine * px - sine * py, y + sine * px + cosine * py) for px, py in outline]


def _mould(outline: tuple[Point, ...], density: float, friction: float) -> Any:
    shape = b2.polygonShape(vertices=list(outline))
    return b2.fixtureDef(shape=shape, density=density, friction=friction, categoryBits=AGENT, maskBits=GROUND)


def _hinge(world: Any, parent: Any, limb_body: Any, limb: Limb, torque: float) -> Any:
    hinge = b2.revoluteJointDef(
        bodyA=parent,
        bodyB=limb_body,
        localAnchorA=_metres(limb.socket),
        localAnchorB=_metres(limb.pivot),
        referenceAngle=limb.rest,
        enableMotor=limb.speed > 0,
        enableLimit=True,
        maxMotorTorque=torque,
        lowerAngle=limb.low,
        upperAngle=limb.high,
    )
    return world.CreateJoint(hinge)


def _centre(limb: Limb, body: Body, centres: list[Point]) -> Point:
    """Where the centre of a limb starts, seen from the trunk: its hinge on the parent's, lifted."""
    parent, angle = ((0.0, 0.0), 0.0) if limb.parent == TRUNK else (centres[limb.parent], body.limbs[limb.parent].angle)
    socket, pivot = _turned(limb.socket, angle), _turned(limb.pivot, limb.angle)
    return (parent[0] + socket[0] - pivot[0], parent[1] + socket[1] - pivot[1] + limb.lift)


def _turned(point: Point, angle: float) -> Point:
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine * point[0] - sine * point[1], sine * point[0] + cosine * point[1])


def _outline(shape: tuple[Point, ...]) -> tuple[Point, ...]:
    """A polygon in metres, counter-clockwise."""
    points = tuple(map(_metres, shape))
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, (*points[1:], points[0]), strict=True))
    return points if area > 0 else points[::-1]


def _metres(point: Point) -> Point:
    return (point[0] / PIXELS, point[1] / PIXELS)
