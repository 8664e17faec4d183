"""Notifications about what people need to know, sent through the Prefect block that params.yaml names."""

from typing import Literal

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.logging import get_logger

from pipeline.params import load_params

Fact = Literal["gate failed", "drift found", "promotion", "refusal", "roll-back", "canary ended"]


def send(fact: Fact, message: str) -> None:
    """Send a notification, if a block is set. If it cannot be sent, that is only logged."""
    try:
        name = load_params().notifications.block
        if name is None:
            return
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise TypeError("it is not a notification block")
        block.notify(message, subject=f"Unmask: {fact}")  # type: ignore[unused-coroutine]
    except Exception as error:  # whatever a mail server does, a roll-back must go on
        get_logger("unmask").warning("not sent, notifications.block of params.yaml: %s: %s", error, message)
