"""Water of density 1 that fills the world up to a level: buoyancy, drag, lift, and the thrust of moving joints.

For the part of a polygon below the surface, of area A and centroid c:

    buoyancy   10 * A upwards, at c
    drag       -u * 0.25 * (n . u) * length * speed^2 for each leading edge (n . u >= 0), at its middle, at most 2000
    lift        u' * 0.25 * (n . u) * (e . u) * length * speed^2 likewise, u' being u turned by a quarter, at most 500
    thrust     -f * 0.05 * (n . f) * length * (torque + inertia * angular velocity)^2 for each edge with n . f > 0, at the joint, within
               [-20, 20] in x and in y; f is the lever from joint to centre of mass, turned by a quarter, times the motor's torque

n: outward normal of an edge, e: its direction, u: direction of the velocity of its middle. Source: TeachMyAgent (Romac et al., ICML 2021),
whose forces are the usual ones of Box2D water except for the thrust, which its authors call an approximation. Difference: the water is the
half-plane below its surface, not a polygon.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from tutelage.environments._building import Built, placed
from tutelage.environments.bodies import Point

GRAVITY = 10.0
DRAG, MOST_DRAG = 0.25, 2000.0
LIFT, MOST_LIFT = 0.25, 500.0
THRUST, MOST_THRUST = 0.05, 20.0
INVERSE_STEP = 60  # as in the original, which steps 50 times a second


def press(agent: Built, surface: float) -> None:
    """Apply the forces of water up to height `surface` to all parts of the agent."""
    for body, outline, joint in zip(agent.bodies, agent.outlines, [None, *agent.joints], strict=True):
        points = below(placed(outline, body), surface)
        if len(points) > 2:
            area, centre = area_and_centre(points)
            body.ApplyForce((0.0, GRAVITY * area), centre, True)
            _resist(body, points)
            if joint is not None and joint.lowerLimit < joint.angle < joint.upperLimit:
                _thrust(body, joint, points)


def below(points: list[Point], surface: float) -> list[Point]:
    """The part of a convex polygon at or below a height, in the same order."""
    kept: list[Point] = []
    for (x0, y0), (x1, y1) in zip([points[-1], *points[:-1]], points, strict=True):
        if (y0 <= surface) != (y1 <= surface):
            kept.append((x0 + (x1 - x0) * (surface - y0) / (y1 - y0), surface))
        if y1 <= surface:
            kept.append((x1, y1))
    return kept


def area_and_centre(points: list[Point]) -> tuple[float, Point]:
    """Area and centroid of a counter-clockwise polygon; of a flat one the area is 0 and the centroid its first point."""
    (ox, oy), area, cx, cy = points[0], 0.0, 0.0, 0.0
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        triangle = ((x1 - ox) * (y2 - oy) - (x2 - ox) * (y1 - oy)) / 2
        area += triangle
        cx += triangle * (x1 + x2 - 2 * ox) / 3
        cy += triangle * (y1 + y2 - 2 * oy) / 3
    if area <= 0:
        return 0.0, (ox, oy)
    return area, (ox + cx / area, oy + cy / area)


def _edges(points: list[Point]) -> list[tuple[Point, Point, float]]:
    """Middle, direction and length of each edge that has a length."""
    edges = []
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        if length > 0:
            edges.append((((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / length, (y1 - y0) / length), length))
    return edges


def _resist(body: Any, points: list[Point]) -> None:
    (vx, vy), (gx, gy), spin = body.linearVelocity, body.worldCenter, body.angularVelocity
    for (x, y), (ex, ey), length in _edges(points):
        ux, uy = vx - spin * (y - gy), vy + spin * (x - gx)
        speed = math.hypot(ux, uy)
        if speed == 0:
            continue
        ux, uy = ux / speed, uy / speed
        facing = ey * ux - ex * uy
        if facing >= 0:
            pressure = facing * length * speed * speed
            drag = min(DRAG * pressure, MOST_DRAG)
            lift = min(LIFT * pressure * (ex * ux + ey * uy), MOST_LIFT)
            body.ApplyForce((-drag * ux - lift * uy, -drag * uy + lift * ux), (x, y), True)


def _thrust(body: Any, joint: Any, points: list[Point]) -> None:
    torque = joint.GetMotorTorque(INVERSE_STEP)
    (gx, gy), (ax, ay) = body.worldCenter, joint.anchorB
    fx, fy = -torque * (gy - ay), torque * (gx - ax)
    power = torque + body.inertia * body.angularVelocity
    for _, (ex, ey), length in _edges(points):
        facing = ey * fx - ex * fy
        if facing > 0:
            size = THRUST * facing * length * power * power
            force = (_within(-size * fx), _within(-size * fy))
            body.ApplyForce(force, (ax, ay), True)


def _within(value: float) -> float:
    return min(max(value, -MOST_THRUST), MOST_THRUST)
