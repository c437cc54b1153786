"""The ``SplitInference`` resource: what a person asks for.

The one source of the manifest's rules, of the custom resource definition and of the defaults. Every field
carries its description, unit and bounds; an unknown field is an error. Integers only: milliseconds, tokens,
percent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from splitinfer.operator.spec.blocks import BlockRange

API_VERSION = "splitinfer.dev/v1alpha1"
STORE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SOURCE_PATTERN = (
    r"^(store://[A-Za-z0-9][A-Za-z0-9._-]*|file:///.+|pvc://[a-z0-9.-]+(/.+)?|hf://[^/@]+/[^/@]+(@[^@]+)?)$"
)

Name = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
]
Weight = Annotated[int, Field(ge=0, le=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)


class LabelSelector(_Part):
    """Nodes that carry every one of these labels."""

    match_labels: dict[str, str] = Field(
        description="Labels a node must have, each with this value.", min_length=1, max_length=16
    )


class Toleration(_Part):
    """A taint that the pods accept, as in a pod's spec."""

    key: str | None = Field(default=None, description="Taint key; absent matches every key.", max_length=253)
    operator: Literal["Exists", "Equal"] = Field(
        default="Equal", description="Whether the value is compared."
    )
    value: str | None = Field(default=None, description="Taint value, for operator Equal.", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; absent matches every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="For NoExecute: seconds that a pod stays after the taint appears."
    )


class Model(_Part):
    """Which model, and how its weights are computed with."""

    source: str = Field(
        description=(
            "Where the model is: store://NAME in the node's model store, file:///PATH a model folder on the "
            "node, pvc://CLAIM/PATH in a volume claim, hf://ORG/NAME@REVISION on a model hub."
        ),
        max_length=512,
        pattern=SOURCE_PATTERN,
    )
    served_name: Name | None = Field(
        default=None, description="Name that clients ask for; by default the last part of the source."
    )
    dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] = Field(
        default="float32", description="Type of the weights; activations of int8 and int4 are float32."
    )
    engine: Literal["auto", "onnx", "torch"] = Field(
        default="auto",
        description="What computes the blocks; auto takes the best that the node and the model allow.",
    )


class Workload(_Part):
    """The load that is promised room and that the plan is made for."""

    max_context_tokens: int = Field(
        default=2048,
        ge=1,
        le=1_048_576,
        description="Longest context, prompt and output together, in tokens.",
    )
    concurrency: int = Field(
        default=4, ge=1, le=4096, description="Sessions of the longest context that fit at once."
    )
    prompt_tokens: int = Field(default=256, ge=1, le=1_048_576, description="Typical prompt, in tokens.")
    output_tokens: int = Field(default=128, ge=1, le=1_048_576, description="Typical output, in tokens.")

    @model_validator(mode="after")
    def _typical_fits(self) -> Workload:
        typical = self.prompt_tokens + self.output_tokens
        if self.max_context_tokens < typical and {"prompt_tokens", "output_tokens"} & self.model_fields_set:
            raise ValueError(
                f"promptTokens + outputTokens = {typical} is above maxContextTokens = {self.max_context_tokens}; "
                "raise maxContextTokens or lower the typical request"
            )
        return self


class Slo(_Part):
    """Service level objectives, on the 95th percentile over a window."""

    ttft_milliseconds: int | None = Field(
        default=None, ge=1, le=3_600_000, description="Time to first token, p95, in milliseconds."
    )
    tpot_milliseconds: int | None = Field(
        default=None, ge=1, le=3_600_000, description="Time per output token, p95, in milliseconds."
    )
    window_seconds: int = Field(
        default=60, ge=5, le=86_400, description="Window of the percentile, in seconds."
    )


class Privacy(_Part):
    """Blocks that run on trusted nodes or nowhere."""

    sensitive_blocks: tuple[BlockRange, ...] = Field(
        default=(), description='Block ranges, both ends included, such as "0-1" or "29".', max_length=64
    )
    trusted_nodes: LabelSelector | None = Field(
        default=None, description="Nodes that sensitive blocks may run on."
    )

    @model_validator(mode="after")
    def _someone_is_trusted(self) -> Privacy:
        if self.sensitive_blocks and self.trusted_nodes is None:
            raise ValueError("sensitiveBlocks need trustedNodes; say which nodes are trusted")
        return self


class Pin(_Part):
    """Blocks that run on a named node."""

    blocks: BlockRange = Field(description='Block range, both ends included, such as "0-9".')
    node: Name = Field(description="Name of the node.")


class Placement(_Part):
    """Where segments may run."""

    nodes: LabelSelector | None = Field(default=None, description="Candidate nodes; absent means every node.")
    tolerations: tuple[Toleration, ...] = Field(
        default=(), description="Taints that the pods accept.", max_length=16
    )
    max_segments: int = Field(default=8, ge=1, le=64, description="Most segments the model is cut into.")
    pins: tuple[Pin, ...] = Field(
        default=(), description="Blocks fixed to nodes, in block order.", max_length=64
    )


class Objective(_Part):
    """What a good plan is: weights of its parts, and how far ahead a change must pay."""

    latency: Weight = Field(default=100, description="Weight of latency.")
    utilization: Weight = Field(default=10, description="Weight of the load on the nodes.")
    exposure: Weight = Field(default=10, description="Weight of sensitive depth on less trusted nodes.")
    horizon_seconds: int = Field(
        default=600, ge=1, le=604_800, description="Seconds over which a change must earn what it costs."
    )


class Reconfiguration(_Part):
    """When a running plan may change."""

    mode: Literal["Auto", "Propose", "Manual"] = Field(
        default="Auto",
        description="Auto changes by itself, Propose asks in status, Manual follows the pins only.",
    )
    cooldown_seconds: int = Field(
        default=60, ge=0, le=86_400, description="Least seconds between two changes."
    )
    minimum_gain_percent: int = Field(
        default=10, ge=0, le=100, description="Least predicted gain, in percent, that a change is made for."
    )


class Spec(_Part):
    """What is asked for."""

    model: Model = Field(description="Which model, and how its weights are computed with.")
    workload: Workload = Field(default=Workload(), description="The load that the plan is made for.")
    slo: Slo | None = Field(
        default=None, description="Service level objectives, on the p95; absent means none."
    )
    privacy: Privacy = Field(default=Privacy(), description="Blocks that run on trusted nodes or nowhere.")
    placement: Placement = Field(default=Placement(), description="Where segments may run.")
    objective: Objective = Field(default=Objective(), description="What a good plan is.")
    reconfiguration: Reconfiguration = Field(
        default=Reconfiguration(), description="When a running plan may change."
    )


class Metadata(_Part):
    """Kubernetes object metadata, as far as a person writes it."""

    name: Name = Field(description="Name of the resource.")
    namespace: Name | None = Field(default=None, description="Namespace of the resource.")
    labels: dict[str, str] = Field(default={}, description="Labels, for selection.")
    annotations: dict[str, str] = Field(default={}, description="Annotations, for tools.")


class SplitInference(_Part):
    """One model served as a chain of segments."""

    api_version: Literal["splitinfer.dev/v1alpha1"] = Field(description="Version of this schema.")
    kind: Literal["SplitInference"] = Field(description="Kind of the resource.")
    metadata: Metadata = Field(description="Kubernetes object metadata.")
    spec: Spec = Field(description="What is asked for.")


def resource(name: str, spec: dict[str, Any]) -> SplitInference:
    """A resource from a plain ``spec`` in manifest spelling; for defaults and tests."""
    return SplitInference.model_validate(
        {"apiVersion": API_VERSION, "kind": "SplitInference", "metadata": {"name": name}, "spec": spec},
        strict=False,
    )
