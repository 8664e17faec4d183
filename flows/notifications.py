"""One message for each fact that a person has to know, through the block of Prefect that params.yaml names."""

from typing import Literal

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.logging import get_logger

from pipeline.params import load_params

Fact = Literal["gate failed", "drift found", "promotion", "refusal", "roll-back", "canary ended"]


def send(fact: Fact, message: str) -> None:
    """Tell the fact, if there is a block to tell it through. A message that cannot be sent is logged and holds nothing up."""
    try:
        name = load_params().notifications.block
        if name is None:
            return
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise TypeError("it is no notification block")
        block.notify(message, subject=f"Unmask: {fact}")  # type: ignore[unused-coroutine]
    except Exception as error:  # a roll-back must not wait for a mail server, whatever that does
        get_logger("unmask").warning("not sent, notifications.block of params.yaml: %s: %s", error, message)
