"""A lifecycle node that nothing can end: no wrong request, no exception in a transition."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from v2r_ros.throttle import Throttle


class GuardedLifecycleNode(LifecycleNode):
    """Does what rclpy leaves out on Jazzy.

    Attributes:
        complain: logs a warning, each kind at most once in 5 s.
    """

    def __init__(self, node_name: str, **options: object) -> None:
        super().__init__(node_name, **options)
        self.complain = Throttle(self.get_logger().warning)

    def attempt(self, name: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """Does the work of a transition; what it raises is logged and makes the transition fail.

        rclpy swallows what a transition raises and logs nothing. FAILURE, unlike ERROR, leaves the state as it was.
        """
        try:
            action()
        except (ValueError, RuntimeError, OSError) as error:
            self.get_logger().error(f"cannot {name}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"cannot {name}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _LifecycleNodeMixin__on_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Refuses a transition that the state does not allow; rclpy would raise it out of the executor instead."""
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)
        except RCLError as error:
            self.complain(f"transition {request.transition.id} refused: {error}")
            response.success = False
            return response
