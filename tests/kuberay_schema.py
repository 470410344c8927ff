"""The fields of KubeRay's and Kubernetes' objects that the shipped files use, strictly: any other key is a mistake.

Written from the API reference of KubeRay 1.6 (ray.io/v1) and of Kubernetes (v1, networking.k8s.io/v1).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Labels = dict[str, str]
Port = Annotated[int, Field(ge=1, le=65535)]


class Strict(BaseModel):
    """An object of the API in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name | None = None
    namespace: Name | None = None
    labels: Labels = {}
    annotations: dict[str, str] = {}


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity] = {}


class KeyOfSecret(Strict):
    name: Name
    key: str


class ValueFrom(Strict):
    secretKeyRef: KeyOfSecret


class Variable(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None


class SecretReference(Strict):
    name: Name
    optional: bool = False


class EnvFrom(Strict):
    secretRef: SecretReference


class Capabilities(Strict):
    drop: list[str]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Seccomp(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    seccompProfile: Seccomp


class ContainerPort(Strict):
    name: Name
    containerPort: Port


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class Claim(Strict):
    claimName: Name


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None


class SecretVolume(Strict):
    secretName: Name


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    secret: SecretVolume | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Container(Strict):
    name: Name
    image: str
    command: list[str] = []
    ports: list[ContainerPort] = []
    env: list[Variable] = []
    envFrom: list[EnvFrom] = []
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[Mount]


class PodSpec(Strict):
    automountServiceAccountToken: bool | None = None
    securityContext: PodSecurity
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    initContainers: list[Container] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]


class PodTemplate(Strict):
    metadata: Metadata
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["token"]
    secretName: Name


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: Annotated[int, Field(ge=0)]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    resources: Resources | None = None


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int
    labels: Labels = {}
    rayStartParams: dict[str, str]
    template: PodTemplate


class RayClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode"]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    backoffLimit: int
    runtimeEnvYAML: str
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class RayServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


class Selector(Strict):
    matchLabels: Labels


class IpBlock(Strict):
    cidr: str
    except_: Annotated[list[str], Field(alias="except")] = []


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None
    ipBlock: IpBlock | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP", "UDP"]
    port: Port


class Ingress(Strict):
    from_: Annotated[list[Peer], Field(alias="from", min_length=1)]
    ports: list[PolicyPort] = []


class Egress(Strict):
    to: Annotated[list[Peer], Field(min_length=1)]
    ports: list[PolicyPort] = []


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]
    egress: list[Egress]


class NetworkPolicy(Strict):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteMany"]]
    resources: Resources


class PersistentVolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class Image(Strict):
    repository: str
    tag: str
    pullPolicy: Literal["IfNotPresent", "Always"]


class Common(Strict):
    containerEnv: list[Variable]


class ChartGroup(Strict):
    """What the chart ``ray-cluster`` takes for the head and for the worker group alike."""

    rayStartParams: dict[str, str]
    labels: Labels
    containerEnv: list[Variable]
    envFrom: list[EnvFrom]
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    resources: Resources
    podSecurityContext: PodSecurity
    securityContext: ContainerSecurity
    volumes: list[Volume]
    volumeMounts: list[Mount]


class ChartHead(ChartGroup):
    rayVersion: str
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions


class ChartWorker(ChartGroup):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int


class ChartService(Strict):
    type: Literal["ClusterIP"]


class ClusterValues(Strict):
    """Values of the chart ``kuberay/ray-cluster``."""

    image: Image
    common: Common
    head: ChartHead
    worker: ChartWorker
    service: ChartService


class OperatorValues(Strict):
    """Values of the chart ``kuberay/kuberay-operator``."""

    singleNamespaceInstall: Literal[True]
    crNamespacedRbacEnable: Literal[True]
    watchNamespace: list[Name]
    resources: Resources
