"""The parts of JobSet's and Kueue's types that the manifests use, as strict JSON schemas: a field that is not here is an error.

Written from https://github.com/kubernetes-sigs/jobset/blob/main/api/jobset/v1alpha2/jobset_types.go (and its webhook, for names) and
https://github.com/kubernetes-sigs/kueue/tree/main/apis/kueue/v1beta2 (resourceflavor_types.go, clusterqueue_types.go, localqueue_types.go).
What is inside of a job is Kubernetes' own type, and checked as such.
"""

from __future__ import annotations

from typing import Any

_DNS_LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_SUBDOMAIN = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", "maxLength": 253}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_LABELS = {**_TEXTS, "maxProperties": 8}
_QUANTITY = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|Ki|Mi|Gi)?$"}]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _metadata(name: dict[str, Any], *required: str) -> dict[str, Any]:
    return _object(["name", *required], name=name, namespace=_DNS_LABEL, labels=_TEXTS, annotations=_TEXTS)


JOBSET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_metadata(_DNS_LABEL, "namespace"),
    spec=_object(
        ["replicatedJobs"],
        network=_object([], enableDNSHostnames={"type": "boolean"}, subdomain=_DNS_LABEL, publishNotReadyAddresses={"type": "boolean"}),
        failurePolicy=_object(
            [],
            maxRestarts={"type": "integer", "minimum": 0},
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={
                "type": "array",
                "items": _object(
                    ["name", "action"],
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                    onJobFailureReasons={
                        "type": "array",
                        "uniqueItems": True,
                        # Reasons of a Job's failed condition: https://github.com/kubernetes/api/blob/master/batch/v1/types.go
                        "items": {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        },
                    },
                    targetReplicatedJobs={"type": "array", "items": _DNS_LABEL},
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ["name", "template"],
                name=_DNS_LABEL,
                replicas={"type": "integer", "minimum": 1},
                template=_object(["spec"], metadata={"type": "object"}, spec={"type": "object"}),
            ),
        },
        suspend={"type": "boolean"},
    ),
)

_KUEUE = {"const": "kueue.x-k8s.io/v1beta2"}
RESOURCE_FLAVOR = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion=_KUEUE,
    kind={"const": "ResourceFlavor"},
    metadata=_object(["name"], name=_SUBDOMAIN),  # of the cluster: no namespace
    spec=_object([], nodeLabels=_LABELS),
)
CLUSTER_QUEUE = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion=_KUEUE,
    kind={"const": "ClusterQueue"},
    metadata=_object(["name"], name=_SUBDOMAIN),
    spec=_object(
        [],
        namespaceSelector=_object([], matchLabels=_TEXTS),
        resourceGroups={
            "type": "array",
            "maxItems": 16,
            "items": _object(
                ["coveredResources", "flavors"],
                coveredResources={"type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string"}},
                flavors={
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 64,
                    "items": _object(
                        ["name", "resources"],
                        name=_SUBDOMAIN,
                        resources={
                            "type": "array",
                            "minItems": 1,
                            "items": _object(["name", "nominalQuota"], name={"type": "string"}, nominalQuota=_QUANTITY),
                        },
                    ),
                },
            ),
        },
    ),
)
LOCAL_QUEUE = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion=_KUEUE,
    kind={"const": "LocalQueue"},
    metadata=_object(["name", "namespace"], name=_SUBDOMAIN, namespace=_DNS_LABEL),
    spec=_object(["clusterQueue"], clusterQueue=_SUBDOMAIN),
)
BY_KIND = {"JobSet": JOBSET, "ResourceFlavor": RESOURCE_FLAVOR, "ClusterQueue": CLUSTER_QUEUE, "LocalQueue": LOCAL_QUEUE}
