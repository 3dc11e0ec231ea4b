"""A lifecycle node that nothing can end: no wrong request, no exception in a transition."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from v2r_ros.throttle import Throttle


class GuardedLifecycleNode(LifecycleNode):
    """Does what rclpy leaves out on Jazzy, and has the transitions; a node says what is done in them.

    Attributes:
        complain: logs a warning, each kind at most once in 5 s.
    """

    def __init__(self, node_name: str, **options: object) -> None:
        super().__init__(node_name, **options)
        self.complain = Throttle(self.get_logger().warning)

    def _configure(self) -> None:
        """Loads what is needed; what it raises fails the transition."""
        raise NotImplementedError

    def _activate(self) -> None:
        """Begins to work; what it raises fails the transition, and `_deactivate` is called."""
        raise NotImplementedError

    def _deactivate(self) -> None:
        """Ends the work, in whatever state it is; what was loaded stays."""
        raise NotImplementedError

    def _clean_up(self) -> None:
        """Ends the work and frees whatever there is."""
        raise NotImplementedError

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See `_configure`."""
        return self.attempt("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See `_activate`."""
        result = self.attempt("activate", self._activate)
        if result == TransitionCallbackReturn.SUCCESS:
            return super().on_activate(state)
        self._deactivate()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See `_deactivate`."""
        result = self.attempt("deactivate", self._deactivate)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See `_clean_up`."""
        return self.attempt("clean up", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See `_clean_up`."""
        return self.attempt("shut down", self._clean_up)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees everything and goes back to unconfigured."""
        return self.attempt("recover from an error", self._clean_up)

    def close(self) -> None:
        """Ends the threads; for the end of the process."""
        self._clean_up()

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
