"""Content credentials (C2PA) that an image file carries: who signed it, with what, and whether that was generative AI.

They are reported beside a verdict and never influence it: most files have none, and a file without any is no more suspicious.
"""

import importlib.util
import io
import json
import logging
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

GENERATIVE = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
"""IPTC digital source types that name generative AI."""

OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
"""An upload must not make this machine contact an address that it names."""

log = logging.getLogger(__name__)


class Credentials(BaseModel):
    """Content credentials (C2PA) of an image, as its active manifest states them."""

    model_config = ConfigDict(frozen=True)

    signer: str | None = Field(description="holder of the signing certificate")
    claim_generator: str | None = Field(description="the program that wrote it")
    valid: bool = Field(description="the signature and the file's hash are valid; whether to trust the signer is another question")
    problems: list[str] = Field(description="C2PA codes of failed checks")
    ai_generated: list[str] = Field(description="digital source types that say that generative AI made, or helped to make, the image")


def read(data: bytes) -> Credentials | None:
    """Read a file's credentials; None if it has none that can be read, or if c2pa-python (the extra `c2pa`) is not installed."""
    # Every manifest contains this label: most files skip the parser.
    if b"c2pa" not in data or not _installed():
        return None
    import c2pa

    try:
        with c2pa.Context.from_dict(OFFLINE) as context, c2pa.Reader(io.BytesIO(data), context=context) as reader:
            return _said(json.loads(reader.json()))
    except c2pa.C2paError as error:
        log.info("content credentials cannot be read: %s", type(error).__name__)
        return None


@cache
def _installed() -> bool:
    return importlib.util.find_spec("c2pa") is not None


def _said(store: dict[str, Any]) -> Credentials:
    claim = store["manifests"][store["active_manifest"]]
    signature = claim.get("signature_info", {})
    programs = [" ".join(filter(None, (info.get("name"), info.get("version")))) for info in claim.get("claim_generator_info", [])]
    actions = [
        action
        for assertion in claim.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    sources = {action.get("digitalSourceType", "").rpartition("/")[2] for action in actions}
    return Credentials(
        signer=signature.get("common_name") or signature.get("issuer"),
        claim_generator=", ".join(programs) or claim.get("claim_generator"),
        valid=store.get("validation_state") in ("Valid", "Trusted"),
        problems=sorted({problem.get("code", "") for problem in store.get("validation_status", [])}),
        ai_generated=sorted(sources & set(GENERATIVE)),
    )
