"""The builder that puts a body (`bodies`) into a Box2D world."""

from __future__ import annotations

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

__all__ = ["AGENT", "CREEPER", "GROUND", "Box2D", "Built", "Grip", "Part", "b2", "build"]

GROUND, CREEPER, AGENT = 0x0001, 0x0004, 0x0020  # collision categories


@dataclass
class Part:
    """What a Box2D body of an agent carries as user data: what it touches now."""

    fatal: bool = False
    touching: int = 0


@dataclass
class Grip:
    """The end of a hand: the surfaces it touches, and the joint by which it holds on; user data of its sensor fixture."""

    hand: Any
    tip: Point
    surfaces: list[Any] = field(default_factory=list)
    joint: Any = None


@dataclass
class Built:
    """An agent in a world: the trunk and then its limbs, with user data and outlines (metres); a motor for each limb that has one."""

    bodies: list[Any]
    parts: list[Part]
    outlines: list[tuple[Point, ...]]
    joints: list[Any] = field(default_factory=list)
    motors: list[Any] = field(default_factory=list)
    grips: list[Grip] = field(default_factory=list)
    head: Any = None


def build(world: Any, body: Body, x: float, ground: float, *, fatal_trunk: bool) -> Built:
    """Put `body` into a Box2D world, its trunk at `x`, standing on ground of that height (metres).

    fatal_trunk: whether the terrain must not touch the trunk.
    """
    y = ground + (body.clearance + body.reach) / PIXELS
    outlines = [tuple(map(_metres, shape)) for shape in (body.trunk, *(limb.shape for limb in body.limbs))]
    trunk = Part(fatal=fatal_trunk)
    built = Built([_rigid(world, (x, y), 0.0, outlines[0], trunk, density=body.density[0], friction=0.1)], [trunk], outlines)
    centres: list[Point] = []
    for limb, outline in zip(body.limbs, outlines[1:], strict=True):
        centres.append(_centre(limb, body, centres, (x * PIXELS, y * PIXELS)))
        part = Part(fatal=limb.fatal)
        made = _rigid(world, _metres(centres[-1]), limb.angle, outline, part, density=body.density[1])
        joint = _hinge(world, built.bodies[limb.parent + 1], made, limb, body.torque)
        built.bodies.append(made)
        built.parts.append(part)
        built.joints.append(joint)
        if limb.speed:
            built.motors.append(joint)
        if limb.grips:
            built.grips.append(_hand(made, outline))
    built.head = built.bodies[body.head + 1]
    return built


def _rigid(world: Any, at: Point, angle: float, outline: tuple[Point, ...], part: Part, *, density: float, friction: float = 0.2) -> Any:
    fixture = b2.fixtureDef(
        shape=b2.polygonShape(vertices=list(outline)), density=density, friction=friction, categoryBits=AGENT, maskBits=GROUND
    )
    return world.CreateDynamicBody(position=at, angle=angle, fixtures=fixture, userData=part)


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


def _hand(hand: Any, outline: tuple[Point, ...]) -> Grip:
    grip = Grip(hand, (0.0, max(y for _, y in outline)))
    sensor = b2.fixtureDef(
        shape=b2.circleShape(pos=grip.tip, radius=0.05), isSensor=True, categoryBits=AGENT, maskBits=GROUND | CREEPER, userData=grip
    )
    hand.CreateFixture(sensor)
    return grip


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
