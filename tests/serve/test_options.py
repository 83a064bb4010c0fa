"""A setting is written once: schemas are derived from the fields of dataclasses."""

from dataclasses import fields

from mmdiff.config import DecodingConfig
from mmdiff.serve.http.schemas import TAKEN, ChatRequest


def test_requests_take_every_decoding_setting() -> None:
    names = {each.name for each in fields(DecodingConfig)} - set(TAKEN)
    assert names <= set(ChatRequest.model_fields)
    given = {"messages": [{"role": "user", "content": "a"}], "lookahead": 2, "cache": "none"}
    assert ChatRequest.model_validate(given).changes() == {"lookahead": 2, "cache": "none"}
