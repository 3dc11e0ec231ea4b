from __future__ import annotations

import numpy as np
import pytest
from robot_bags import JOINT_NAMES, TYPES, array, header, joints, twist

from v2r_core.convert.numbers import NumberReader, has_header
from v2r_core.convert.parts import ConvertError


def decoded(row):
    _, _, kind, data = row
    return TYPES.deserialize_cdr(data, kind)


def made(kind, **fields):
    return TYPES.types[kind](**fields)


def test_joints_are_brought_into_the_order_of_the_first_message():
    reader = NumberReader("/joints", "sensor_msgs/msg/JointState")
    assert reader.read(decoded(joints([1, 2, 3], 5))).tolist() == [1, 2, 3]
    assert reader.names == JOINT_NAMES
    other = decoded(joints([30, 9, 10, 20], 5, ("wrist", "gripper", "shoulder", "elbow")))
    found = reader.read(other)
    assert found.tolist() == [10, 20, 30]
    assert found.dtype == np.float32


def test_a_missing_joint_is_named():
    reader = NumberReader("/joints", "sensor_msgs/msg/JointState")
    reader.read(decoded(joints([1, 2, 3], 5)))
    with pytest.raises(ConvertError, match=r"no joint 'elbow'.*gripper.*shoulder, elbow, wrist"):
        reader.read(decoded(joints([1, 2, 3], 5, ("shoulder", "gripper", "wrist"))))


def test_an_empty_array_of_joints_names_what_to_do():
    with pytest.raises(ConvertError, match="3 joints and 0 numbers in 'velocity'"):
        NumberReader("/joints", "sensor_msgs/msg/JointState", "velocity").read(decoded(joints([1, 2, 3], 5)))


def test_the_last_point_of_a_trajectory_counts():
    point, duration = "trajectory_msgs/msg/JointTrajectoryPoint", TYPES.types["builtin_interfaces/msg/Duration"]
    none = np.empty(0)

    def at(values):
        return made(
            point,
            positions=np.array(values, float),
            velocities=none,
            accelerations=none,
            effort=none,
            time_from_start=duration(1, 0),
        )

    kind = "trajectory_msgs/msg/JointTrajectory"
    reader = NumberReader("/go", kind)
    message = made(kind, header=header(1), joint_names=["a", "b"], points=[at([1, 2]), at([3, 4])])
    assert reader.read(message).tolist() == [3, 4]
    swapped = made(kind, header=header(1), joint_names=["b", "a"], points=[at([3, 4])])
    assert reader.read(swapped).tolist() == [4, 3]
    with pytest.raises(ConvertError, match="without points"):
        reader.read(made(kind, header=header(1), joint_names=["a", "b"], points=[]))


def test_twists_arrays_and_whatever_consists_of_numbers():
    plain = NumberReader("/cmd", "geometry_msgs/msg/Twist")
    assert plain.read(decoded(twist([1, 2, 3, 4, 5, 6], 1))).tolist() == [1, 2, 3, 4, 5, 6]
    assert plain.names == ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")
    stamped = made("geometry_msgs/msg/TwistStamped", header=header(1), twist=decoded(twist([1, 2, 3, 4, 5, 6], 1)))
    reader = NumberReader("/cmd", "geometry_msgs/msg/TwistStamped")
    assert reader.read(stamped).tolist() == [1, 2, 3, 4, 5, 6]
    assert reader.names[0] == "twist.linear.x"
    part = NumberReader("/cmd", "geometry_msgs/msg/TwistStamped", "twist.angular.z")
    assert part.read(stamped).tolist() == [6]
    values = NumberReader("/a", "std_msgs/msg/Float64MultiArray")
    assert values.read(decoded(array([7, 8], 1))).tolist() == [7, 8]
    assert values.names is None
    with pytest.raises(ConvertError, match="3 numbers in a message, 2 in the first one"):
        values.read(decoded(array([7, 8, 9], 1)))


def test_what_is_no_number_is_refused_and_a_wrong_path_lists_what_there_is():
    message = made("std_msgs/msg/String", data="words")
    with pytest.raises(ConvertError, match="data is str, no number"):
        NumberReader("/t", "std_msgs/msg/String").read(message)
    with pytest.raises(ConvertError, match=r"no field 'linear\.w'; instead of 'w' there is x, y, z"):
        NumberReader("/cmd", "geometry_msgs/msg/Twist", "linear.w").read(decoded(twist([1, 2, 3, 4, 5, 6], 1)))


def test_constants_and_headers_are_no_numbers_of_a_message():
    kind = "sensor_msgs/msg/Range"
    message = made(
        kind,
        header=header(1),
        radiation_type=1,
        field_of_view=0.1,
        min_range=0.2,
        max_range=5.0,
        range=2.5,
        **({"variance": 0.0} if "variance" in TYPES.types[kind].__dataclass_fields__ else {}),
    )
    reader = NumberReader("/range", kind)
    reader.read(message)
    assert reader.names[:5] == ("radiation_type", "field_of_view", "min_range", "max_range", "range")


def test_which_types_have_a_stamp():
    assert has_header(TYPES, "sensor_msgs/msg/JointState")
    assert not has_header(TYPES, "geometry_msgs/msg/Twist")
    assert not has_header(TYPES, "std_msgs/msg/Empty")
