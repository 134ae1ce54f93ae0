from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import workers
from workers.failure import MAX_ERROR_LENGTH, MAX_TRACE_LENGTH, clean, describe, masked, trace


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def recursive(depth: int) -> None:
    if depth:
        recursive(depth - 1)
    raise ValueError("deep inside")


def test_an_error_says_where_it_was_raised() -> None:
    assert describe(raised(ValueError("no"))).startswith("ValueError: no (at test_failure.py:")


def test_the_workers_own_frames_are_not_where_it_was_raised() -> None:
    handlers = workers.App()

    @handlers.handler("e")
    def work(n: int) -> None: ...

    with pytest.raises(workers.PayloadMismatchError) as caught:
        handlers.handlers["work"].binding.bind({})
    assert " (at test_failure.py:" in describe(caught.value)
    assert "binding.py" not in describe(caught.value)


def test_an_error_that_cannot_be_shown_is_still_described() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(Rude()).startswith("Rude: (its message")
    assert trace(raised(Rude())).startswith("Rude: (its message")


def test_an_error_is_made_storable() -> None:
    assert clean("a\x00b\ud800") == "a\\x00b\\ud800"
    assert len(clean("x" * 10_000)) == 4000
    text = trace(raised(ValueError("a\x00b\ud800")))
    assert "\x00" not in text
    text.encode()


def test_a_trace_shows_type_message_and_the_source_where_it_was_raised() -> None:
    text = trace(raised(ValueError("no")))
    assert text.startswith("ValueError: no\n  File ")
    assert "raise error from cause" in text


def test_a_trace_shows_what_led_to_the_error() -> None:
    text = trace(raised(ValueError("cannot send"), raised(ConnectionRefusedError("refused"))))
    assert text.index("ConnectionRefusedError: refused") < text.index("which led to") < text.index("ValueError: cannot")


def test_a_cause_that_was_put_away_is_not_shown() -> None:
    error = raised(ValueError("public"))
    error.__context__ = KeyError("secret")
    error.__suppress_context__ = True
    assert "secret" not in trace(error)


def test_a_trace_names_the_members_of_a_group() -> None:
    text = trace(raised(ExceptionGroup("two", [KeyError("one"), ExceptionGroup("in it", [OSError("other")])])))
    assert "KeyError: 'one'" in text
    assert "OSError: other" in text


def test_a_deep_trace_keeps_the_innermost_frames_within_its_bound() -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        recursive(500)
    text = trace(caught.value)
    assert "raise ValueError" in text
    assert len(text) <= MAX_TRACE_LENGTH
    assert text.count("\n  File ") <= 12


def test_a_long_chain_of_long_errors_keeps_the_error_itself_within_the_bound() -> None:
    error: BaseException | None = None
    for n in range(30):
        error = raised(ValueError(f"{n} " + "x" * 9_000), error)
    assert error is not None
    text = trace(error)
    assert len(text) <= MAX_TRACE_LENGTH
    assert "ValueError: 29 x" in text
    assert len(describe(error)) <= MAX_ERROR_LENGTH


def test_causes_in_a_circle_end() -> None:
    one, other = raised(ValueError("one")), raised(ValueError("other"))
    one.__cause__, other.__cause__ = other, one
    assert trace(one).count("ValueError: one") == 1


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://shop:s3cret@db/shop",
        "cannot reach postgresql+psycopg://shop:s3cret@db:5432/shop?x=1, gave up",
        "redis://:s3cret@cache/0",
        "amqp://u:s3/cr@et:s3cret@h",
        "('redis://u:s3cret@a', 'redis://u:s3cret@b')",
        "redis://u:s3cret@a,redis://u:s3cret@b",
        "Client error '401' for url 'https://api.example.com/v1?api_key=s3cret&page=2'",
        "https://h/?a=1&access_token=s3cret",
        "https://h/?X-Amz-Signature=s3cret",
        "postgresql:///shop?user=u&password=s3cret",
        "HTTPS://U:s3cret@H",
    ],
)
def test_passwords_and_keys_of_urls_are_masked_wherever_they_appear(text: str) -> None:
    for shown in (
        masked(text),
        describe(raised(ValueError(text))),
        trace(raised(ValueError(text))),
        trace(raised(ValueError("outer"), raised(OSError(text)))),
        clean("x" * 3900 + text),
    ):
        assert "s3cret" not in shown
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    ["http://localhost:8000/a", "a@b.c", "mailto:a@b.c", "redis://cache:6379/0", "page?limit=5&cursor=ab", "x=1"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_a_secret_at_the_bound_is_not_shown_in_part() -> None:
    for padding in range(MAX_ERROR_LENGTH - 60, MAX_ERROR_LENGTH):
        assert "s3c" not in clean("x" * padding + " redis://u:s3cret@h/0 " + "y" * 100)


@given(st.text(st.sampled_from("a:/@?&=. '"), max_size=200))
def test_masking_twice_changes_nothing(text: str) -> None:
    assert masked(masked(text)) == masked(text)


def test_masking_a_hostile_text_takes_no_time() -> None:
    began = time.perf_counter()
    clean("a://b:" * 5_000)
    clean("?token" * 5_000 + "=")
    clean("a" * 1_000_000)
    assert time.perf_counter() - began < 2.0


class Customer(BaseModel):
    email: int
    age: int


def invalid(values: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Customer.model_validate(values)
    return caught.value


def test_of_a_validation_error_field_and_rule_are_shown_and_no_value() -> None:
    error = invalid({"email": "ann@private.example", "age": "unknown"})
    for shown in (describe(error), trace(error), trace(raised(ValueError("bad input"), error))):
        assert "email: Input should be a valid integer" in shown
        assert "age: " in shown
        assert "private" not in shown


def test_values_in_the_message_of_a_validation_error_are_masked_in_other_errors_too() -> None:
    error = invalid({"email": "ann@private.example", "age": 1})
    for shown in (describe(ValueError(f"bad: {error}")), trace(ValueError(str(error) + "…"))):
        assert "private" not in shown
        assert "valid integer" in shown
