"""Checks outside the schemas: references between manifests, and security rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

LABEL = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?$")
VALUE = re.compile(r"^([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?$")
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
BY_HAND = "secrets-made-by-hand"

UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def where(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata'].get('name', '?')}"


def pods(manifest: Manifest) -> Iterator[tuple[Manifest, dict[str, str]]]:
    """(pod spec, labels of the pod) for every pod template of the manifest."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind == "Pod":
        yield spec, manifest["metadata"].get("labels", {})
    elif kind in ("StatefulSet", "Deployment", "Job"):
        yield _template(spec["template"])
    elif kind == "RayJob":
        yield from _ray_pods(spec)


def _template(template: Manifest, **more: str) -> tuple[Manifest, dict[str, str]]:
    return template["spec"], {**template.get("metadata", {}).get("labels", {}), **more}


def _ray_pods(spec: Manifest) -> Iterator[tuple[Manifest, dict[str, str]]]:
    """With the labels that KubeRay adds (recorded from a real cluster)."""
    if "submitterPodTemplate" in spec:
        yield _template(spec["submitterPodTemplate"])
    cluster, ray = spec["rayClusterSpec"], {"ray.io/is-ray-node": "yes"}
    head = {**ray, "ray.io/node-type": "head"}
    yield _template(cluster["headGroupSpec"]["template"], **head)
    for group in cluster.get("workerGroupSpecs", ()):
        yield _template(group["template"], **ray, **{"ray.io/node-type": "worker"})


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _amount(quantity: object) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    return float(found[1]) * UNITS[found[2]] if found else float("nan")


# --- cross checks ------------------------------------------------------------------------------


def mistakes(manifests: list[Manifest]) -> list[str]:
    """Mistakes that an API server accepts, but with which nothing works."""
    checks = (
        *(_names, _namespaces, _ray_jobs, _flavors, _resources, _probes, _ports),
        *(_selectors, _references, _roles, _twice),
    )
    return [line for check in checks for line in check(manifests)]


def _names(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        meta = manifest["metadata"]
        if not NAME.match(meta.get("name", "")) or len(meta["name"]) > 253:
            yield f"{where(manifest)}: bad name"
        labels = {**meta.get("labels", {})}
        for _, more in pods(manifest):
            labels |= more
        for key, value in labels.items():
            if not LABEL.match(key) or not VALUE.match(value) or len(value) > 63:
                yield f"{where(manifest)}: bad label {key}: {value}"


CLUSTER_WIDE = {
    *("Namespace", "PersistentVolume", "PriorityClass"),
    *("ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"),
}


def _namespaces(manifests: list[Manifest]) -> Iterator[str]:
    (namespace,) = [m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] not in CLUSTER_WIDE:
            if manifest["metadata"].get("namespace") != namespace:
                yield f"{where(manifest)}: outside of namespace {namespace}"
        elif manifest["kind"] == "ClusterQueue":
            wanted = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
            if spec["namespaceSelector"] != wanted:
                yield f"{where(manifest)}: is not for namespace {namespace}"


def _flavors(manifests: list[Manifest]) -> Iterator[str]:
    """Kueue sends each pod of a search to a flavor's nodes, so the flavor has the tolerations."""
    flavors = [m["spec"].get("tolerations", ()) for m in manifests if m["kind"] == "ResourceFlavor"]
    for manifest in manifests if flavors else ():
        for pod, _ in pods(manifest) if manifest["kind"] == "RayJob" else ():
            for toleration in pod.get("tolerations", ()):
                if not all(toleration in has for has in flavors):
                    yield f"{where(manifest)}: a toleration that is not in the ResourceFlavor"


def _probes(manifests: list[Manifest]) -> Iterator[str]:
    """A process takes seconds to start on a loaded node; Kubernetes' own time-out is one second."""
    for manifest in manifests:
        for key, probe in _walk(manifest):
            if key.endswith("Probe") and "exec" in probe and probe.get("timeoutSeconds", 1) < 10:
                yield f"{where(manifest)}: {key} has too short a time-out"


def _ray_jobs(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            for line in _ray_job(manifest):
                yield f"{where(manifest)}: {line}"


def _ray_job(manifest: Manifest) -> Iterator[str]:
    spec, meta = manifest["spec"], manifest["metadata"]
    cluster = spec.get("rayClusterSpec", {})
    queue = "kueue.x-k8s.io/queue-name" in meta.get("labels", {})
    mode, ends = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes")
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode}: KubeRay starts it and never submits"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
        yield "SidecarMode forbids submitterPodTemplate and submitterConfig"
    if len(meta["name"]) > 47:
        yield "name longer than KubeRay's 47"
    if (queue or spec.get("suspend")) and not ends:
        yield "Kueue and suspend need shutdownAfterJobFinishes"
    if ends and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished") and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if cluster.get("authOptions", {}).get("mode") == "token" and _minor(cluster) < (2, 52):
        yield "token authentication needs rayVersion 2.52"
    if queue:
        yield from _kueue(spec, meta, cluster)
    for group in cluster.get("workerGroupSpecs", ()):
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31)
        if not low <= group.get("replicas", low) <= high:
            yield f"{group['groupName']}: replicas outside minReplicas..maxReplicas"


def _minor(cluster: Manifest) -> tuple[int, ...]:
    return tuple(int(p) for p in cluster.get("rayVersion", "0.0").split(".")[:2])


def _kueue(spec: Manifest, meta: Manifest, cluster: Manifest) -> Iterator[str]:
    if len(cluster.get("workerGroupSpecs", ())) > 17:
        yield "Kueue takes 17 worker groups at most"
    if "clusterSelector" in spec:
        yield "Kueue takes no clusterSelector"
    elastic = meta.get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    if cluster.get("enableInTreeAutoscaling") and not elastic:
        yield "autoscaling under Kueue needs the annotation elastic-job"


def _resources(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        for pod, _ in pods(manifest):
            for container in containers(pod):
                asked = container.get("resources", {}).get("requests", {})
                limits = container.get("resources", {}).get("limits", {})
                for key, limit in limits.items():
                    if _amount(asked.get(key, limit)) > _amount(limit):
                        yield f"{where(manifest)}: {key} requests more than its limit"
                    if "/" in key and str(asked.get(key, limit)) != str(limit):
                        yield f"{where(manifest)}: {key} must request its limit"
                    if "/" in key and _amount(limit) != int(_amount(limit)):
                        yield f"{where(manifest)}: {key} comes whole"


def _ports(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        for key, port in _walk(manifest):
            numbers = key in ("containerPort", "port", "targetPort", "endPort", "hostPort")
            if numbers and isinstance(port, int) and not 0 < port < 65536:
                yield f"{where(manifest)}: {key} {port}"


def _walk(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


OUTSIDE = [
    {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "kuberay-operator"}
    for name in ("kuberay-operator", "kuberay")
]
"""The operator's pod as KubeRay's Helm chart and its kustomization create it."""


def _selectors(manifests: list[Manifest]) -> Iterator[str]:
    labelled = [labels for m in manifests for _, labels in pods(m)] + OUTSIDE
    for manifest in manifests:
        own = [labels for _, labels in pods(manifest)]
        for selector in _selects(manifest):
            among = own if manifest["kind"] in ("StatefulSet", "Deployment") else labelled
            if not any(selector.items() <= labels.items() for labels in among):
                yield f"{where(manifest)}: selects no pod: {selector}"
        yield from _named_ports(manifest, manifests)


def _selects(manifest: Manifest) -> Iterator[dict[str, str]]:
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind == "Service" and "selector" in spec:
        yield spec["selector"]
    elif kind in ("StatefulSet", "Deployment", "PodDisruptionBudget"):
        yield spec["selector"]["matchLabels"]
    elif kind == "NetworkPolicy":
        yield spec["podSelector"].get("matchLabels", {})
        for key, value in _walk([spec.get("ingress"), spec.get("egress")]):
            if key == "podSelector":
                yield value.get("matchLabels", {})


def _named_ports(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if manifest["kind"] != "Service" or "selector" not in manifest["spec"]:
        return
    selector = manifest["spec"]["selector"].items()
    behind = [p for m in manifests for p, labels in pods(m) if selector <= labels.items()]
    named = {p.get("name") for pod in behind for c in containers(pod) for p in c.get("ports", ())}
    for port in manifest["spec"].get("ports", ()):
        if isinstance(port.get("targetPort"), str) and port["targetPort"] not in named:
            yield f"{where(manifest)}: no container has a port named {port['targetPort']}"


def _references(manifests: list[Manifest]) -> Iterator[str]:
    have = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for manifest in manifests:
        listed = manifest["metadata"].get("annotations", {}).get(BY_HAND, "")
        have |= {("Secret", name.strip()) for name in listed.split(",") if name.strip()}
    for manifest in manifests:
        for wanted in _wants(manifest):
            if wanted not in have:
                yield f"{where(manifest)}: there is no {wanted[0]} {wanted[1]}"


def _wants(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for pod, _ in pods(manifest):
        yield from _pod_wants(pod)
    labels = manifest["metadata"].get("labels", {})
    if manifest["kind"] == "RayJob" and "kueue.x-k8s.io/queue-name" in labels:
        yield "LocalQueue", labels["kueue.x-k8s.io/queue-name"]
    if manifest["kind"] == "LocalQueue":
        yield "ClusterQueue", manifest["spec"]["clusterQueue"]
    if manifest["kind"] == "ClusterQueue":
        for group in manifest["spec"]["resourceGroups"]:
            yield from (("ResourceFlavor", f["name"]) for f in group["flavors"])
    if manifest["kind"] == "RoleBinding":
        yield "Role", manifest["roleRef"]["name"]
        yield from ((s["kind"], s["name"]) for s in manifest["subjects"])


def _pod_wants(pod: Manifest) -> Iterator[tuple[str, str]]:
    if "serviceAccountName" in pod:
        yield "ServiceAccount", pod["serviceAccountName"]
    if "priorityClassName" in pod:
        yield "PriorityClass", pod["priorityClassName"]
    yield from (("Secret", s["name"]) for s in pod.get("imagePullSecrets", ()))
    for key, value in _walk(pod):
        if key in ("secretKeyRef", "secretRef"):
            yield "Secret", value["name"]
        elif key in ("configMapKeyRef", "configMapRef", "configMap"):
            yield "ConfigMap", value["name"]
        elif key == "persistentVolumeClaim":
            yield "PersistentVolumeClaim", value["claimName"]
    volumes = {v["name"] for v in pod.get("volumes", ())}
    volumes |= {"data"}  # a StatefulSet's claim template
    for container in containers(pod):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield "volume", mount["name"]


def _roles(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        for rule in manifest.get("rules", ()) if manifest["kind"] == "Role" else ():
            if "*" in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]:
                yield f"{where(manifest)}: a star"


def _twice(manifests: list[Manifest]) -> Iterator[str]:
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    yield from (
        f"{k[0]}/{k[2]}: made twice" for k in sorted(set(keys), key=str) if keys.count(k) > 1
    )


# --- policy ------------------------------------------------------------------------------------

SECRET_WORDS = re.compile(r"PASSWORD|TOKEN|SECRET|API_?KEY|CREDENTIAL", re.IGNORECASE)
URL_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


def violations(manifests: list[Manifest]) -> list[str]:
    """Every violation of a security rule, as `rule: where`."""
    found = [
        f"{rule}: {where(m)}"
        for m in manifests
        for pod, _ in pods(m)
        for rule in [
            *_pod_rules(pod),
            *(r for c in containers(pod) for r in _container_rules(c, pod)),
        ]
    ]
    found += [f"secret in clear: {where(m)}" for m in manifests if _in_clear(m)]
    found += list(_namespace_rules(manifests))
    return sorted(set(found))


def _pod_rules(pod: Manifest) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("runAsUser") in (None, 0):
        yield "root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if any(pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")):
        yield "host namespace"
    if any("hostPath" in v for v in pod.get("volumes", ())):
        yield "host path"
    if pod.get("automountServiceAccountToken") is None:
        yield "API token by default"


def _container_rules(container: Manifest, pod: Manifest) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "privilege"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
        yield "capabilities"
    if not context.get("readOnlyRootFilesystem"):
        yield "writable root"
    tag = container.get("image", "").rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
    if tag in ("", "latest") and "@sha256:" not in container.get("image", ""):
        yield "image without a version"
    if not {"cpu", "memory"} <= set(container.get("resources", {}).get("requests", {})):
        yield "no requests"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "no memory limit"


def _in_clear(manifest: Manifest) -> bool:
    if manifest["kind"] == "Secret":
        return True
    if any(isinstance(v, str) and URL_PASSWORD.search(v) for _, v in _walk(manifest)):
        return True
    return any(
        SECRET_WORDS.search(e.get("name", "")) and "value" in e
        for pod, _ in pods(manifest)
        for c in containers(pod)
        for e in c.get("env", ())
    )


def _namespace_rules(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            continue
        name = manifest["metadata"]["name"]
        level = manifest["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            yield f"pod security: {where(manifest)}"
        if not any(_denies_all(m, name) for m in manifests):
            yield f"no default deny: {where(manifest)}"


def _denies_all(manifest: Manifest, namespace: str) -> bool:
    spec = manifest.get("spec", {})
    return (
        manifest["kind"] == "NetworkPolicy"
        and manifest["metadata"].get("namespace") == namespace
        and spec["podSelector"] == {}
        and set(spec.get("policyTypes", ())) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )
