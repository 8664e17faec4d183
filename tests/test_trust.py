"""Which of the users' statements count."""

import json
from datetime import UTC, datetime, timedelta

from pipeline.monitoring import feedback, trust
from pipeline.monitoring.feedback import Statement
from pipeline.params_data import FeedbackSource
from tests.data_helpers import picture

START = datetime(2026, 1, 1, tzinfo=UTC)
SAID = {"version": "1", "verdict": "fake", "probability_fake": 0.9}


def said(number: int, label: str, client: str | None, image: int | None = None, hours: float = 0) -> Statement:
    digest = None if image is None else f"{image:064x}"
    time = START + timedelta(hours=hours, seconds=number)
    return Statement(id=str(number), time=time, label=label, client=client, image=digest, **SAID)


def judged(statements: list[Statement], **bounds: object) -> tuple[list[str], dict[str, str]]:
    """Ids of the statements that count, and the reasons of the others."""
    found = trust.judge(statements, FeedbackSource(kind="feedback", **bounds))
    assert len(found.counted) + len(found.set_aside) == len(statements)
    return sorted(statement.id for statement in found.counted), {statement.id: reason for statement, reason in found.set_aside}


def test_the_majority_of_clients_decides_and_a_draw_counts_for_nobody():
    votes = [said(0, "real", "a", 1), said(1, "real", "b", 1), said(2, "fake", "c", 1)]
    counted, aside = judged(votes)
    assert counted == ["0", "1"] and aside == {"2": "most clients say that this image is real"}
    counted, aside = judged(votes[1:])
    assert counted == [] and set(aside.values()) == {"clients are evenly divided on this image"}


def test_a_client_has_one_vote_on_an_image_however_often_it_says_so():
    many = [said(number, "fake", "a", 1) for number in range(5)]
    counted, aside = judged([*many, said(8, "real", "b", 1), said(9, "real", "c", 1)])
    assert counted == ["8", "9"] and len(aside) == 5


def test_who_learns_an_id_has_one_vote_on_its_answer_and_replaces_nothing(tmp_path):
    feedback.record(tmp_path, id="a", label="real", image=b"an image", client="its user", **SAID)
    for client in ("first stranger", "second stranger"):
        feedback.record(tmp_path, id="a", label="fake", client=client, **SAID)
        found = trust.judge(feedback.read(tmp_path), FeedbackSource(kind="feedback"))
        assert {said.client for said, _ in found.set_aside} >= {"its user"}  # divided, then outvoted
    assert [said.client for said in found.counted] == ["first stranger", "second stranger"]
    feedback.record(tmp_path, id="a", label="real", client="first stranger", **SAID)
    found = trust.judge(feedback.read(tmp_path), FeedbackSource(kind="feedback"))
    assert [said.client for said in found.counted] == ["its user", "first stranger"]


def test_a_client_that_floods_is_bounded():
    flood = [said(number, "fake", "bot", number) for number in range(100)]
    others = [said(1000 + number, "real", f"user {number % 5}", 1000 + number) for number in range(50)]
    counted, aside = judged(flood + others, a_day=30)
    assert len(counted) == 80 and "99" in aside and "0" in counted
    slow = [said(number, "fake", "bot", number, hours=25 * (number // 30)) for number in range(300)]  # within the daily limit, over days
    counted, aside = judged(slow + others, a_day=30, max_share=0.5)
    assert len(counted) == 100 and aside["299"] == "its client would contribute more than 50% of all"
    assert len(judged(slow, a_day=30)[0]) == 300  # a client that is the only one is trusted


def test_who_gives_no_name_has_one_vote_an_answer_and_the_limits_of_one_client():
    counted, aside = judged([said(0, "fake", None, 1), said(1, "fake", None, 1), said(2, "real", "a", 1)])
    assert counted == ["0", "1"] and set(aside) == {"2"}
    nameless = [said(number, "fake", None, number) for number in range(100)]
    others = [said(1000 + number, "real", f"user {number % 5}", 1000 + number) for number in range(50)]
    assert len(judged(nameless + others, a_day=30)[0]) == 80
    slow = [said(number, "fake", None, number, hours=25 * (number // 30)) for number in range(300)]
    counted, aside = judged(slow + others, a_day=30, max_share=0.5)
    assert len(counted) == 100 and aside["299"] == "its client would contribute more than 50% of all"


def test_who_contradicts_a_golden_example_is_not_believed_in_anything(tmp_path):
    picture(tmp_path / "golden/one.png", seed=1)
    (tmp_path / "golden/golden.json").write_text(json.dumps({"one.png": {"label": "real", "probability_fake": 0.1}}))
    (digest,) = trust.golden(tmp_path / "golden")
    votes = [said(0, "fake", "liar", 5), said(1, "real", "honest", 6), said(2, "fake", "liar").model_copy(update={"image": digest})]
    votes.append(said(3, "real", "honest").model_copy(update={"image": digest}))
    counted, aside = judged(votes, golden=tmp_path / "golden")
    assert counted == ["1", "3"] and set(aside) == {"0", "2"} and "golden" in aside["0"]
    for label, image in (("fake", (tmp_path / "golden/one.png").read_bytes()), ("real", None)):  # it changes its mind
        feedback.record(tmp_path, id="2", label=label, image=image, client="liar", **SAID)
    assert not trust.judge(feedback.read(tmp_path), FeedbackSource(kind="feedback", golden=tmp_path / "golden")).counted
