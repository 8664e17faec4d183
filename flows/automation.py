"""The Prefect automation that starts a training when drift is found."""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture, RunDeployment
from prefect.client.orchestration import get_client

from flows.drift import DRIFT_EVENT, RESOURCE

NAME = "retrain on drift"

# A Jinja template yields a string; the JSON wrapper makes Prefect parse it, so that the flow gets a dict.
EVIDENCE = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": "{{ event.payload | tojson }}"}}


def retrain_on_drift(deployment_id: UUID) -> None:
    """Create the automation, or update the existing one. One that was switched off stays off.

    Args:
        deployment_id: deployment of the flow `train`; it runs with the event's payload as `evidence`.

    Raises:
        httpx.HTTPError: if the Prefect server does not answer.
    """
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(NAME)
        wanted = AutomationCore(
            name=NAME,
            description="Starts the flow `train` when the flow `drift` finds drift.",
            enabled=there[0].enabled if there else True,
            trigger=EventTrigger(
                expect={DRIFT_EVENT},
                match={"prefect.resource.id": RESOURCE["prefect.resource.id"]},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=deployment_id,
                    parameters={"reason": "drift", "evidence": EVIDENCE},
                    job_variables=None,
                )
            ],
        )
        if there:
            client.update_automation(there[0].id, wanted)
        else:
            client.create_automation(wanted)
