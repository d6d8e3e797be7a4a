"""How a job stands with its connection: the table of links, entry by entry."""

from __future__ import annotations

import pytest
from jobwire_client.options import Settings
from jobwire_client.subscription import Link, Step, Subscription
from steps import ID

EXPECTED = {
    (Link.AWAY, Step.ASK): Link.ASKED,
    (Link.AWAY, Step.ATTACH): Link.ATTACHED,
    (Link.AWAY, Step.DETACH): Link.AWAY,
    (Link.WAITING, Step.ASK_AGAIN): Link.AWAY,
    (Link.WAITING, Step.DETACH): Link.AWAY,
    (Link.ASKED, Step.ATTACH): Link.ATTACHED,
    (Link.ASKED, Step.REFUSE): Link.WAITING,
    (Link.ASKED, Step.DETACH): Link.AWAY,
    (Link.ATTACHED, Step.ATTACH): Link.ATTACHED,
    (Link.ATTACHED, Step.DETACH): Link.AWAY,
}


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("step", Step)
def test_every_link_meets_every_step(link: Link, step: Step) -> None:
    settings = Settings("http://127.0.0.1:1", None)
    subscription = Subscription({"type": "create", "job_id": ID}, None, settings, lambda: None)
    subscription.link = link
    if (link, step) in EXPECTED:
        subscription.step(step)
        assert subscription.link is EXPECTED[link, step]
    else:
        with pytest.raises(KeyError):
            subscription.step(step)
