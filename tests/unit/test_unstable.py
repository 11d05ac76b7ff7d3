"""What changes by itself in a text, and as much of what only looks like it."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.chat.unstable import looks_random, unstable_parts, warning

NOW = datetime(2026, 11, 5, 14, 3, tzinfo=UTC)


def found(text: str, *, is_template: bool = False) -> list[str]:
    return [part.text for part in unstable_parts(text, [NOW], is_template=is_template)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Today is 2026-11-05.", "2026-11-05"),
        ("Heute ist der 5.11.2026.", "5.11.2026"),
        ("It is November 5, 2026", "November 5, 2026"),
        ("It is 05 nov 2026", "05 nov 2026"),
        ("Now: 14:01:55", "14:01:55"),
        ("Be brief.", None),
        ("Released on 2025-11-05, at 09:30.", None),
        ("Version 12026-11-051", None),
        ("A ratio of 14:03.5", "14:03"),
    ],
)
def test_the_present_moment_in_a_text(text: str, first: str | None) -> None:
    assert next(iter(found(text)), None) == first


@pytest.mark.parametrize(
    "part",
    [
        "2026/11/05",
        "20261105",
        "11/5/2026",
        "05-11-2026",
        "5th of November 2026",
        "Nov 5th, 2026",
        "5. November 2026",
        "5 de noviembre de 2026",
        "2026年11月5日",
        "2026-11-05T14:02:11Z",
        "2026-11-05 14:02",
        "November 5, 2026 at 2:03 pm",
        "1793887380",
        "1793887380123",
        "6f1c2a9e-3b54-4d0f-9a77-0c1d2e3f4a5b",
        "9f8a2c41d07b3e65",
        "req_011CSHoEeqs5C35K2UUqR7Fy",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ],
)
def test_what_a_script_writes_into_a_prompt(part: str) -> None:
    (first, *_) = found(f"You are kind. This is {part}, says the clock.")
    assert first in (part, part.rstrip("Z"))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Current date: 2024-02-29", "2024-02-29"),
        ("Current date and time: 2024-02-29 08:00:00", "2024-02-29 08:00:00"),
        ("**Today's date:** Monday, March 4, 2024", "Monday, March 4, 2024"),
        ("Today is Tuesday.", "Tuesday"),
        ("The time is 09:30.", "09:30"),
        ("Date: 4.3.2024", "4.3.2024"),
        ("Generated at 2024-02-29T08:00:00", "2024-02-29T08:00:00"),
        ("timestamp: 1709193600", "1709193600"),
        ("Session ID: a8f3k2p9", "a8f3k2p9"),
        ('{"request_id": "12345678"}', "12345678"),
        ("nonce=77h2k9x1", "77h2k9x1"),
        ("See https://example.com/doc?sig=9f8a2c41d07b3e65", "9f8a2c41d07b3e65"),
    ],
)
def test_words_in_front_say_what_is_made_anew(text: str, first: str) -> None:
    """Also when the moment is long over: a file of last year is still written anew."""
    assert found(f"Be brief.\n{text}\nBe kind.")[0] == first


@pytest.mark.parametrize(
    "text",
    [
        "Your knowledge ends in June 2024.",
        "In 2026 the law changed; since 1 January 2025 it is in force.",
        "Use Python 3.11.5, torch 2.13.0 and CUDA 12.6.",
        "Version 2026.11.5 of the library, or v2026.11.5",
        "Write dates as 2024-01-31 and times as 10:15:00.",
        "We are open from 9:00 to 14:00 and until 14:30 on Fridays.",
        "Closed on Monday, open on Tuesday.",
        "The meeting is always on Monday at 10:15.",
        "Call +1 415 555 2671 or 0049 30 1234567890.",
        "The code is 1234567890, the ISBN 978-3-16-148410-0.",
        "Use the id 123e4567-e89b-12d3-a456-426614174000 in examples.",
        "The nil id is 00000000-0000-0000-0000-000000000000.",
        "Colours: #ff00aa, #9f8a2c41, 0xdeadbeef00112233.",
        "Pinned: sha256:9f8a2c41d07b3e659f8a2c41d07b3e659f8a2c41d07b3e659f8a2c41d07b3e65",
        "See https://example.com/static/9f8a2c41d07b3e65/logo.png for the logo.",
        "Call getElementsByClassName2 or Utf8ToUtf16Converter4, or test_function_12345.",
        "Models: Qwen3-30B-A3B-Instruct-2507, gpt-4o-2024-08-06, x86_64-unknown-linux-gnu.",
        "The session id is a string. A request_id: int is required.",
        "Aspect ratios 16:9 and 4:3, odds of 14:1, John 3:16.",
        "IP 10.11.20.26, port 8080, range 192.168.0.0/16.",
        "Account DE89370400440532013000 is the example of IBANs.",
        "Use Qwen3OmniMoeCode2WavConfig, RTDetrV2FrozenBatchNorm2d or MobileNetV2DeepLabV3Plus.",
        "See https://example.com/assets/963603bc-aa07-4688-bd24-379962ece871 for a picture.",
        "Say {total_time}, {birth_date}, {frame_time:.1f} and $Date: 2011/11/11 as they are.",
        'An event is {"CreatedTimestamp": 1534452029.587, "timestamp": 1560269319}.',
        "Services are called svc-0285b53b2eEXAMPLE.",
        "Keep {name} and {update} and {runtime} as they are.",
    ],
)
def test_what_only_looks_like_it_is_let_pass(text: str) -> None:
    assert found(text, is_template=True) == []


@pytest.mark.parametrize(
    "part",
    ["{{current_date}}", "{now}", "{{ datetime.now }}", "$(date +%F)", "${TIMESTAMP}",
     "{{ uuid4() }}", "{request_id}", "{{ today | date }}"],
)  # fmt: skip
def test_placeholders_count_where_a_text_is_filled_in(part: str) -> None:
    text = f"You are kind. It is {part}."
    assert found(text, is_template=True) == [part]
    assert found(text) == []


def test_midnight_is_near_midnight() -> None:
    late = datetime(2026, 11, 5, 23, 58, tzinfo=UTC)
    assert unstable_parts("It is 00:01 here", [late])[0].text == "00:01"


def test_the_warning_names_the_first_and_nothing_is_said_of_a_stable_text() -> None:
    told = warning("Today is 2026-11-05, id 9f8a2c41d07b3e65.", NOW)
    assert told is not None
    assert "'2026-11-05'" in told
    assert warning("Be brief.", NOW) is None
    assert warning(None, NOW) is None


@given(st.uuids(version=4).filter(lambda number: len(set(number.hex)) > 6))
def test_every_random_uuid_is_found(number: uuid.UUID) -> None:
    assert found(f"Id {number}.") == [str(number)]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_no_text_is_too_odd(text: str) -> None:
    for part in unstable_parts(text, [NOW], is_template=True):
        assert text[part.start : part.stop] == part.text


def test_a_long_text_takes_no_time() -> None:
    for piece in ("a" * 200_000, "1" * 200_000, "now is the " * 20_000, "{" * 100_000,
                  "5 de " * 40_000, "a1B2" * 50_000, "12:" * 60_000):  # fmt: skip
        before = time.process_time()
        unstable_parts(piece, [NOW], is_template=True)
        assert time.process_time() - before < 20, piece[:8]


@pytest.mark.parametrize(
    "word", ["internationalisation2024", "ABCDEFGHIJKLMNOP12", "1234567890123456"]
)
def test_words_and_numbers_are_not_random(word: str) -> None:
    assert not looks_random(word)
