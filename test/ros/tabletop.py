"""worlds/tabletop.sdf as numbers, and the same world for MuJoCo, since Gazebo is no pip package.

Run as a program it plays the world in MuJoCo, which must not be imported into the tests' own process, and prints what
happened as JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

WORLD_FILE = Path(__file__).parents[2] / "worlds" / "tabletop.sdf"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """One link, which is one shape or, with shape "", none.

    Attributes:
        position, rotation: in the world, at the start; metres and a 3 x 3 matrix.
        sizes: of a box its sides, of a cylinder radius and length, of a plane its sides.
        friction: of its collision; NaN where none is written down.
    """

    model: str
    name: str
    static: bool
    position: Array
    rotation: Array
    shape: str
    sizes: tuple[float, ...]
    collides: bool
    friction: float
    mass: float
    inertia: dict[str, float]


@dataclass(frozen=True)
class Joint:
    """One joint; axis and limits are None of a fixed one."""

    name: str
    kind: str
    parent: str
    child: str
    axis: tuple[float, ...] | None
    limits: dict[str, float] | None


def world() -> Element:
    """The element `world`."""
    root = ElementTree.parse(WORLD_FILE).getroot()
    found = root.find("world")
    assert root.tag == "sdf" and found is not None
    return found


def numbers(element: Element, path: str, default: str = "") -> tuple[float, ...]:
    """The numbers in an element's text."""
    return tuple(float(word) for word in (element.findtext(path) or default).split())


def place(element: Element) -> tuple[Array, Array]:
    """Position and rotation of a `pose`: roll about x, then pitch about y, then yaw about z, all fixed axes."""
    *position, roll, pitch, yaw = numbers(element, "pose", "0 0 0 0 0 0")
    (a, b), (c, d), (e, f) = ((math.cos(angle), math.sin(angle)) for angle in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    about_y = np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
    about_z = np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
    return np.array(position), about_z @ about_y @ about_x


def links() -> list[Link]:
    """All links of the world."""
    return [_link(model, link) for model in world().findall("model") for link in model.findall("link")]


def _link(model: Element, link: Element) -> Link:
    (origin, turn), (position, rotation) = place(model), place(link)
    bodies = [*link.findall("visual"), *link.findall("collision")]
    shapes = {_shape(body) for body in bodies}
    assert len(shapes) <= 1, f"{link.get('name')}: what is seen is not what is touched"
    shape, sizes = shapes.pop() if shapes else ("", ())
    inertia = link.find("inertial/inertia")
    return Link(
        model=model.get("name", ""),
        name=link.get("name", ""),
        static=model.findtext("static") == "true",
        position=origin + turn @ position,
        rotation=turn @ rotation,
        shape=shape,
        sizes=sizes,
        collides=link.find("collision") is not None,
        friction=float(link.findtext("collision/surface/friction/ode/mu") or "nan"),
        mass=float(link.findtext("inertial/mass") or "nan"),
        inertia={} if inertia is None else {part.tag: float(part.text or "nan") for part in inertia},
    )


def _shape(body: Element) -> tuple[str, tuple[float, ...]]:
    geometry = body.find("geometry")
    assert geometry is not None and len(geometry) == 1 and body.find("pose") is None
    shape = geometry[0]
    if shape.tag == "cylinder":
        return shape.tag, (*numbers(shape, "radius"), *numbers(shape, "length"))
    return shape.tag, numbers(shape, "size")


def joints() -> list[Joint]:
    """All joints of the pusher."""
    model = next(model for model in world().findall("model") if model.get("name") == "pusher")
    result = []
    for joint in model.findall("joint"):
        limit = joint.find("axis/limit")
        result.append(
            Joint(
                name=joint.get("name", ""),
                kind=joint.get("type", ""),
                parent=joint.findtext("parent") or "",
                child=joint.findtext("child") or "",
                axis=None if joint.find("axis") is None else numbers(joint, "axis/xyz"),
                limits=None if limit is None else {part.tag: float(part.text or "nan") for part in limit},
            )
        )
    return result


def plugins(parent: Element) -> dict[str, Element]:
    """The plugins of the world or of a model, by name without its namespace."""
    return {plugin.get("name", "").rpartition("::")[2]: plugin for plugin in parent.findall("plugin")}


def model(name: str) -> Element:
    """A model of the world."""
    return next(found for found in world().findall("model") if found.get("name") == name)


def inertia_of(link: Link) -> Array:
    """Moments about the three axes of a solid body, kg m^2: float64 (3,)."""
    if link.shape == "box":
        squares = np.square(link.sizes)
        return link.mass / 12 * (squares.sum() - squares)
    radius, length = link.sizes
    across = link.mass / 12 * (3 * radius**2 + length**2)
    return np.array([across, across, link.mass / 2 * radius**2])


def pixels(points: Array, camera: Link, fov: float, width: int, height: int) -> Array:
    """Where a pinhole camera that looks along its own x, with y to the left and z up, sees points (N, 3); (N, 2)."""
    seen = (points - camera.position) @ camera.rotation
    assert (seen[:, 0] > 0).all()
    focal = width / 2 / math.tan(fov / 2)
    return np.stack([width / 2 - focal * seen[:, 1] / seen[:, 0], height / 2 - focal * seen[:, 2] / seen[:, 0]], axis=1)


def mjcf() -> str:
    """The world for MuJoCo: its solids, masses, joints, and the velocity controllers as actuators."""
    everything, moved = links(), joints()
    root = Element("mujoco")
    ElementTree.SubElement(root, "option", timestep="0.001", gravity=world().findtext("gravity") or "")
    top = ElementTree.SubElement(root, "worldbody")
    pusher = {link.name: link for link in everything if link.model == "pusher"}
    for link in everything:
        if link.model != "pusher" and link.shape:
            body = _body(top, link, np.zeros(3))
            if not link.static:
                ElementTree.SubElement(body, "freejoint")
    made: dict[str, tuple[Element, Array]] = {"world": (top, np.zeros(3))}
    for joint in moved:  # they stand in the order from the world outwards
        parent, origin = made[joint.parent]
        link = pusher[joint.child]
        body = _body(parent, link, origin)
        made[link.name] = body, link.position
        if joint.kind == "prismatic":
            assert joint.axis is not None and joint.limits is not None
            axis, limits = " ".join(map(str, joint.axis)), f"{joint.limits['lower']} {joint.limits['upper']}"
            ElementTree.SubElement(
                body, "joint", name=joint.name, type="slide", axis=axis, range=limits, limited="true"
            )
    actuators = ElementTree.SubElement(root, "actuator")
    controller = plugins(model("pusher"))["JointTrajectoryController"]
    names = [part.text or "" for part in controller.findall("joint_name")]
    for name, gain in zip(names, controller.findall("velocity_p_gain"), strict=True):
        force = next(joint.limits["effort"] for joint in moved if joint.name == name and joint.limits)
        limits = f"{-force} {force}"
        ElementTree.SubElement(actuators, "velocity", joint=name, kv=gain.text or "", forcerange=limits)
    return ElementTree.tostring(root, encoding="unicode")


def _body(parent: Element, link: Link, origin: Array) -> Element:
    body = ElementTree.SubElement(
        parent, "body", name=f"{link.model}_{link.name}", pos=" ".join(map(str, link.position - origin))
    )
    sizes = [link.sizes[0], link.sizes[1] / 2] if link.shape == "cylinder" else [side / 2 for side in link.sizes]
    size = " ".join(map(str, [*sizes, 0.1] if link.shape == "plane" else sizes))
    touch = "1" if link.collides else "0"
    given = {"type": link.shape, "size": size, "contype": touch, "conaffinity": touch}
    if not math.isnan(link.friction):
        given["friction"] = f"{link.friction} 0.005 0.0001"
    if link.static:
        ElementTree.SubElement(body, "geom", given)
        return body
    ElementTree.SubElement(body, "geom", given, mass="0")
    moments = " ".join(str(link.inertia[axis]) for axis in ("ixx", "iyy", "izz"))
    ElementTree.SubElement(body, "inertial", pos="0 0 0", mass=str(link.mass), diaginertia=moments)
    return body


def play() -> dict[str, list[float]]:
    """Waits half a second, pushes along x at 0.2 m/s up to the goal, and then on into the corner of the limits."""
    import mujoco

    simulated = mujoco.MjModel.from_xml_string(mjcf())
    data = mujoco.MjData(simulated)
    result: dict[str, list[float]] = {}

    def run(seconds: float, x: float, y: float) -> None:
        data.ctrl[:] = x, y
        for _ in range(round(seconds / simulated.opt.timestep)):
            mujoco.mj_step(simulated, data)

    def velocities() -> list[float]:
        return [float(data.joint(name).qvel[0]) for name in ("pusher_x", "pusher_y")]

    def block() -> list[float]:
        return [float(number) for number in data.body("block_link").xpos]

    run(0.5, 0, 0)
    result["settled"] = block()
    run(0.1, 0.2, 0)
    result["velocity"] = velocities()
    run(0.95, 0.2, 0)
    result["pushed"] = block()
    run(0.1, 0, 0)
    result["stopped"] = velocities()
    run(4.0, -0.2, 0.2)
    result["corner"] = [float(data.joint(name).qpos[0]) for name in ("pusher_x", "pusher_y")]
    result["end"] = block()
    return result


if __name__ == "__main__":
    print(json.dumps(play()))
