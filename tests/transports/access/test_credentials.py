"""Which grant a credential gives, for how long, and what becomes of it when the keys change."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from tests.jobs.scripted import WALL_START_MS
from tests.transports.keys import ANN, BOB, KEYS, OWN, ROOT, House
from worker.errors import Forbidden, JobNotFound, Unauthorized
from worker.jobs.limits.principals import LOCAL, Grant
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.transports.access.credentials import LOOK_EVERY_MS
from worker.transports.access.signing import AccessToken, Signer, Ticket

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A worker with three keys of a file, and one of the settings."""
    return House(tmp_path / "keys.toml", api_key=OWN)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_without_keys_everybody_is_local() -> None:
    access = House().access
    for token in (None, "", "anything"):
        assert access.authenticate(token) == Grant(principal=LOCAL)
    assert access.identify({"authorization": "Basic x", "cookie": "jobwire=x"}) is not None
    assert not access.required
    with pytest.raises(Forbidden, match="no keys"):
        access.mint(access.authenticate(None), 60)


def test_a_key_is_a_principal_with_its_allowance(house: House) -> None:
    ann = house.access.authenticate(ANN)
    assert (ann.principal.name, ann.principal.key, ann.principal.account) == ("ann", "ann", "ann")
    assert (ann.principal.allowance.weight, ann.principal.admin, ann.expires_at_ms) == (3.0, False, None)
    assert house.access.authenticate(BOB).principal.allowance.jobs_per_minute_max == 2
    assert house.access.authenticate(ROOT).principal.admin
    assert house.access.authenticate(OWN).principal.name == "key"


@pytest.mark.parametrize("token", [None, "", "x", ANN + "x", ANN[:-1], ANN.upper(), " " + ANN, "ann", "\ud800"])
def test_what_is_no_key_is_refused(house: House, token: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        house.access.authenticate(token)
    assert ANN not in refused.value.detail


def test_a_key_expires(tmp_path: Path) -> None:
    house = House(tmp_path / "keys.toml", KEYS.replace("weight = 3", "expires_at = 2025-10-30T12:41:00Z"))
    left_ms = 1_761_828_060_000 - WALL_START_MS - house.stage.clock.now_ms
    # The stage's clock begins after that.
    assert left_ms < 0
    with pytest.raises(Unauthorized, match="API key has expired"):
        house.access.authenticate(ANN)
    house.rewrite(KEYS.replace("weight = 3", "expires_at = 2025-10-30T15:41:00Z"))
    grant = house.access.authenticate(ANN)
    assert grant.expires_at_ms is not None
    house.stage.clock.now_ms = grant.expires_at_ms - 1
    assert house.access.is_valid(grant)
    house.stage.clock.advance(1)
    assert not house.access.is_valid(grant)
    assert house.stage.clock.wall_ms() == 1_761_838_860_000


# ---- the ladder ------------------------------------------------------------------------------------------------------

SAME = {"origin": "http://localhost"}


def test_what_is_shown_first_decides(house: House) -> None:
    admit, cookie = house.access.identify, {"cookie": f"a=b; jobwire={ROOT}", **SAME}

    def name(headers: dict[str, str], bearer: str | None = None) -> str | None:
        grant = admit(headers, bearer)
        return None if grant is None else grant.principal.name

    assert name({"authorization": f"Bearer {ANN}", **cookie}, BOB) == "ann"
    assert name({"authorization": f"bearer  {ANN} "}) == "ann"
    assert name(cookie, BOB) == "bob"
    assert name(cookie) == "root"
    assert name({}) is None
    assert name({"cookie": "jobwire; =;; jobwire.x=1"}) is None


@pytest.mark.parametrize("wrong", ["", "Bearer", "Bearer wrong", f"Basic {ANN}", ANN])
def test_what_is_wrong_is_not_passed_over(house: House, wrong: str) -> None:
    with pytest.raises(Unauthorized):
        house.access.identify({"authorization": wrong, "cookie": f"jobwire={ANN}", **SAME}, ANN)
    with pytest.raises(Unauthorized):
        house.access.identify({"cookie": f"jobwire={ANN}", **SAME}, "wrong")


def test_a_cookie_is_taken_from_our_own_pages_only(house: House) -> None:
    cookie = {"cookie": f"jobwire={ANN}"}
    assert house.access.identify({**cookie, **SAME}) is not None
    # Browsers send no Origin with a GET of the same origin, but where it came from.
    assert house.access.identify({**cookie, "sec-fetch-site": "same-origin"}) is not None
    for headers in ({}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"}):
        with pytest.raises(Forbidden, match="no Origin"):
            house.access.identify({**cookie, **headers})


def test_a_quoted_cookie_is_read_in_no_time(house: House) -> None:
    spelled = "".join(f"\\{ord(character):03o}" if character == "-" else character for character in ANN)
    for value in (f'"{ANN}"', f'"{spelled}"', f'"\\{ANN}"'):
        grant = house.access.identify({"cookie": f"jobwire=old; jobwire={value}; a=b", **SAME})
        assert grant is not None and grant.principal.name == "ann"
    begun_s = time.process_time()
    for value in ("\\" * 14_000, '\\"' * 7000, ';jobwire="\\"' * 1200):
        assert house.access.identify({"cookie": f'jobwire="{value}"', **SAME}) is None
    assert time.process_time() - begun_s < 0.5


def test_an_old_cookie_is_as_good_as_none(house: House) -> None:
    assert house.access.identify({"cookie": "jobwire=old.token"}) is None
    with pytest.raises(Unauthorized, match="Send the API key"):
        house.access.require({"cookie": "jobwire=old.token"})


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_stands_for_its_key_for_a_while(house: House) -> None:
    access, now = house.access, house.stage.clock.now_ms
    token = access.mint(access.authenticate(ANN), 60, "eve")
    grant = access.authenticate(token)
    assert (grant.principal.name, grant.principal.account, grant.derived) == ("ann/eve", "ann", True)
    assert (grant.principal.allowance.weight, grant.expires_at_ms) == (3.0, now + 60_000)
    assert access.authenticate(access.mint(access.authenticate(ANN), 60)).principal.name == "ann"
    house.stage.clock.advance(60_000)
    assert not access.is_valid(grant)
    with pytest.raises(Unauthorized, match="token has expired"):
        access.authenticate(token)


def test_a_token_makes_no_others_and_is_no_admin(house: House) -> None:
    grant = house.access.authenticate(house.access.mint(house.access.authenticate(ROOT), 60))
    assert not grant.principal.admin
    with pytest.raises(Forbidden, match="cannot create other tokens"):
        house.access.mint(grant, 60)


def test_a_token_goes_with_its_key(house: House) -> None:
    access = house.access
    tokens = {name: access.mint(access.authenticate(name), 60) for name in (ANN, BOB, OWN)}
    grants = {name: access.authenticate(token) for name, token in tokens.items()}
    # Another secret under the same name is another key.
    house.rewrite(KEYS.replace(ANN, "ann-has-another-one"))
    assert access.current(grants[ANN]) is None
    with pytest.raises(Unauthorized):
        access.authenticate(tokens[ANN])
    for name in (BOB, OWN):
        assert access.authenticate(tokens[name]).principal == grants[name].principal
        assert access.is_valid(grants[name])


def test_a_token_is_not_made_by_others(house: House) -> None:
    digest = house.access.authenticate(ANN).proof
    good, late = AccessToken("ann", "", 1 << 50), Signer(b"signs")
    assert house.access.authenticate(late.sign(good, digest)).principal.name == "ann"
    forged = [
        Signer(b"other").sign(good, digest),
        late.sign(good),
        late.sign(AccessToken("bob", "", 1 << 50), digest),
        late.sign(AccessToken("nobody", "", 1 << 50), digest),
        late.sign(Ticket("ann", "ann", "1"), digest),
    ]
    for token in forged:
        with pytest.raises(Unauthorized, match="not valid"):
            house.access.authenticate(token)


# ---- tickets ---------------------------------------------------------------------------------------------------------


def make_job(house: House, key: str, job_id: str = ID, **body: object) -> str:
    """Create a job of a key and return its ticket."""
    request = Infer().parse({"prompt": "Hi", **body}, house.gateway.limits, WrongFields())
    job, _ = house.stage.jobs.create(house.access.authenticate(key).principal, job_id, request)
    ticket = house.access.ticket(job)
    assert ticket is not None
    return ticket


def test_a_ticket_is_for_one_job(house: House) -> None:
    find = house.stage.jobs.get
    ticket = make_job(house, ANN)
    job, grant = house.access.read_ticket(ticket, ID, find)
    assert (job.id, job.owner_name, grant.principal.name) == (ID, "ann", "ann")
    other = make_job(house, ANN, "another-job-of-ann")
    for text, job_id in [(ticket, "another-job-of-ann"), (other, ID), (ticket + "x", ID), ("", ID), ("a.b", ID)]:
        with pytest.raises(Unauthorized, match="ticket"):
            house.access.read_ticket(text, job_id, find)
    # Two principals may have jobs of the same id.
    bobs = make_job(house, BOB)
    assert house.access.read_ticket(bobs, ID, find)[0].owner_name == "bob"
    assert house.access.read_ticket(ticket, ID, find)[0].owner_name == "ann"


def test_a_ticket_is_for_one_life_of_a_job(house: House) -> None:
    ticket = make_job(house, ANN)
    house.gateway.jobs = house.stage.new_jobs()
    with pytest.raises(JobNotFound):
        house.access.read_ticket(ticket, ID, house.gateway.jobs.get)
    make_job(house, ANN)
    with pytest.raises(Unauthorized, match="earlier job"):
        house.access.read_ticket(ticket, ID, house.gateway.jobs.get)


def test_a_ticket_goes_with_its_key_and_is_none_of_the_keys(house: House) -> None:
    ticket = make_job(house, ANN)
    with pytest.raises(Unauthorized):
        house.access.authenticate(ticket)
    house.rewrite(KEYS.replace('"ann"', '"amy"'))
    with pytest.raises(Unauthorized, match="its key was removed"):
        house.access.read_ticket(ticket, ID, house.stage.jobs.get)


def test_where_no_key_is_needed_no_ticket_is_either() -> None:
    house = House()
    job = house.stage.create(ID)
    assert house.access.ticket(job) is None
    assert house.gateway.sse_url(job) == f"/v1/jobs/{ID}/stream"


# ---- when the keys change --------------------------------------------------------------------------------------------


def test_nothing_is_looked_up_while_nothing_has_changed(house: House) -> None:
    grant = house.access.authenticate(ANN)
    assert house.access.current(grant) is grant
    house.access.reload()
    renewed = house.access.current(grant)
    assert renewed is not None and renewed is not grant
    assert house.access.current(renewed) is renewed


def test_new_limits_hold_for_whoever_is_here(house: House) -> None:
    key = house.access.authenticate(ANN)
    token = house.access.authenticate(house.access.mint(key, 60, "eve"))
    house.rewrite(KEYS.replace("weight = 3", "weight = 5"))
    for grant in (key, token):
        current = house.access.current(grant)
        assert current is not None
        assert current.principal.allowance.weight == 5
        assert (current.principal.name, current.expires_at_ms) == (grant.principal.name, grant.expires_at_ms)


def test_a_removed_key_is_good_no_more_and_one_that_comes_back_is(house: House) -> None:
    grant = house.access.authenticate(ANN)
    house.rewrite("")
    assert not house.access.is_valid(grant)
    assert house.access.authenticate(OWN)
    with pytest.raises(Unauthorized):
        house.access.authenticate(ANN)
    house.rewrite(KEYS)
    assert house.access.is_valid(grant)


def test_a_broken_file_changes_nothing_and_says_why(house: House, caplog: pytest.LogCaptureFixture) -> None:
    grant = house.access.authenticate(ANN)
    with caplog.at_level(logging.INFO):
        house.rewrite(KEYS + "[[keys]]\nname = 'eve'\nkey = 'short-secret'\n")
    assert house.access.current(grant) is grant
    assert "The keys stay as they were: key of key 4 (eve) in the keys file" in caplog.text
    assert "short-secret" not in caplog.text


def test_the_file_is_looked_at_now_and_then(house: House) -> None:
    assert house.path is not None
    clock = house.stage.clock
    house.path.write_text(KEYS.replace(ANN, "ann-has-another-one"), encoding="utf-8")

    def looks(times: int) -> None:
        for _ in range(times):
            clock.advance(LOOK_EVERY_MS / 4)
            house.access.tick(clock.now_ms)

    looks(7)
    assert house.access.authenticate(ANN)
    looks(1)
    assert house.access.authenticate("ann-has-another-one")
    with pytest.raises(Unauthorized):
        house.access.authenticate(ANN)


# ---- what depends on the other keys ----------------------------------------------------------------------------------


def allowance(house: House, key: str = ANN) -> tuple[int, float]:
    """Return the highest priority of a key, and its part of the queue."""
    found = house.access.authenticate(key).principal.allowance
    return found.priority_max, found.queue_share


def one(name: str, key: str, *lines: str) -> str:
    """Return a key of a file."""
    return "\n".join(["[[keys]]", f'name = "{name}"', f'key = "{key}"', *lines, ""])


def test_among_several_keys_none_gets_the_highest_priority_or_all_of_the_queue(house: House) -> None:
    for key in (ANN, BOB, ROOT, OWN):
        assert allowance(house, key) == (5, 0.5)


def test_an_only_key_may_do_everything_until_there_is_another(tmp_path: Path) -> None:
    house = House(tmp_path / "keys.toml", one("ann", ANN))
    grant = house.access.authenticate(ANN)
    assert allowance(house) == (9, 1.0)
    house.rewrite(one("ann", ANN) + one("bob", BOB))
    assert allowance(house) == (5, 0.5)
    renewed = house.access.current(grant)
    assert renewed is not None
    assert renewed.principal.allowance.priority_max == 5
    house.rewrite(one("ann", ANN) + one("bob", BOB, "expires_at = 2001-01-01T00:00:00Z"))
    assert allowance(house) == (9, 1.0)
    house.rewrite(one("ann", ANN, "priority_max = 3"))
    assert allowance(house) == (3, 1.0)


def test_tokens_have_the_priority_of_their_key(tmp_path: Path) -> None:
    house = House(tmp_path / "keys.toml", one("ann", ANN, "priority_max = 7") + one("bob", BOB))
    token = house.access.mint(house.access.authenticate(ANN), 60, "eve")
    assert (allowance(house, token), allowance(house, BOB)) == ((7, 0.5), (5, 0.5))


def test_where_there_are_no_keys_everybody_is_an_admin_of_the_highest_priority() -> None:
    local = House().access.authenticate(None).principal
    assert (local.admin, local.allowance.priority_max, local.allowance.queue_share) == (True, 9, 1.0)


def test_a_file_that_others_may_read_is_warned_of_at_the_start_and_at_a_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned() -> int:
        found = [record for record in caplog.records if "chmod 600" in record.getMessage()]
        assert all(record.levelno == logging.WARNING for record in found)
        return len(found)

    path = tmp_path / "keys.toml"
    path.touch(0o600)
    house = House(path)
    assert warned() == 0
    path.chmod(0o644)
    for _ in range(3):
        house.stage.clock.advance(LOOK_EVERY_MS)
        house.access.tick(house.stage.clock.now_ms)
    assert warned() == 1
    assert House(path).access.required
    assert warned() == 2
