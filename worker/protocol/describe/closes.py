"""What each close code of the WebSocket means to a client."""

from __future__ import annotations

from worker.protocol.closing import CloseCode

CLOSES: dict[CloseCode, str] = {
    CloseCode.DONE: "Done. Nothing is wrong.",
    CloseCode.GOING_AWAY: "The other side is going away. Connect again, and resume.",
    CloseCode.TOO_MANY_FRAMES: "Too many control frames, empty frames or tiny fragments. Send fewer.",
    CloseCode.TOO_BIG: "A message was larger than `hello.limits.max_frame_bytes`. Send a smaller one.",
    CloseCode.BUG: "Something went wrong in the worker. Connect again, and resume.",
    CloseCode.RESTART: "The worker has shut down. Connect again after a while, here or elsewhere, and resume.",
    CloseCode.ABUSE: "Too many bad frames or pings, or replies that are not read. Fix the client.",
    CloseCode.UNAUTHORIZED: "The key is missing, wrong or has expired. Get another one.",
    CloseCode.FORBIDDEN: "The page's origin or the host is not allowed. Allow it in the worker's settings.",
    CloseCode.VERSION: "This worker speaks none of the offered subprotocols. Offer `jobwire.v1`.",
    CloseCode.AUTH_TIMEOUT: "An `auth` frame was required and did not come in time.",
    CloseCode.OVERLOADED: "Too many connections are open. Try again later.",
    CloseCode.STALLED: "The client did not read. Connect again, and resume: the job has gone on.",
}


def may_return(code: CloseCode) -> str:
    """Return the one rule: 1000 is done, 44xx, 1008 and 1009 must be fixed first, after others come back."""
    if code == CloseCode.DONE:
        return "done"
    fix = 4400 <= code < 4500 or code in (CloseCode.TOO_MANY_FRAMES, CloseCode.TOO_BIG)
    return "fix it first" if fix else "reconnect and resume"
