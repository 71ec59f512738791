"""Work in a forked process, which leaves this one as it was: nothing imported, nothing warm."""

from __future__ import annotations

import json
import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What ``work`` returns, through JSON; None when it took longer than ``seconds``.

    :raises ChildProcessError: when it failed; its traceback is in the log.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            with os.fdopen(writer, "w") as stream:
                json.dump(work(), stream)
            code = 0
        except BaseException:  # noqa: BLE001 - the parent's code must not go on here
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        in_time = bool(select.select([stream], [], [], seconds)[0])
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        answer = stream.read()
    if os.waitpid(pid, 0)[1] and in_time:
        raise ChildProcessError("the work failed; its traceback is above")
    return json.loads(answer) if in_time else None
